"""Model states as vectors, as bytes for the wire and as files; NumPy only, and nothing is ever unpickled."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from lightsecagg.errors import UpdateError
from lightsecagg.training.base import Array, State

FloatVector = npt.NDArray[np.float64]

FLOATING = frozenset({"float16", "float32", "float64"})
"""Entries of these dtypes are aggregated."""
DTYPES = FLOATING | {"bool"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
"""The dtypes that a state may hold; those that are not floating stay the server's."""

MAX_ENTRIES = 1 << 16  # far above any model; bounds what a hostile message of many tiny entries can allocate
MAX_NAME = 1024  # characters
MAX_AXES = 32  # NumPy 1.26's own limit
MAX_AXIS = (1 << 31) - 1  # elements along one axis


class Entry(NamedTuple):
    """One floating entry of a state dict: its name, shape and dtype ("float32")."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """How many coordinates of the vector it takes."""
        return _size(self.shape)


Layout = tuple[Entry, ...]
"""The floating entries of a state dict, sorted by name: where each coordinate of the vector belongs."""


def layout_of(state: Mapping[str, Array]) -> Layout:
    """The layout of a state; the order in which the dict was filled does not matter.

    Raises:
        UpdateError: an entry has a dtype outside ``DTYPES``, such as complex numbers or objects.
    """
    for name, array in state.items():
        if array.dtype.name not in DTYPES:
            raise UpdateError(f"entry {name!r} has dtype {array.dtype.name}, wanted one of {_listed(DTYPES)}")
    return tuple(
        Entry(name, tuple(state[name].shape), state[name].dtype.name)
        for name in sorted(state)
        if state[name].dtype.name in FLOATING
    )


def dimension(layout: Layout) -> int:
    """The length d of the vector that a layout describes."""
    return sum(entry.size for entry in layout)


def to_vector(state: Mapping[str, Array], layout: Layout) -> FloatVector:
    """The floating entries as one (d,) float64 vector, which holds every float32 exactly.

    Raises:
        UpdateError: an entry of the layout is missing or has another shape or dtype.
    """
    vector = np.empty(dimension(layout), np.float64)
    start = 0
    for entry in layout:
        array = _entry_of(state, entry)
        vector[start : start + entry.size] = array.reshape(-1)
        start += entry.size
    return vector


def delta(local: Mapping[str, Array], start: Mapping[str, Array]) -> npt.NDArray[np.floating]:
    """What training changed: ``local - start`` over the floating entries, (d,).

    It is subtracted in float64 and rounded once, to float32 where the entries hold no more: a float64 vector
    of a large model would be the largest thing in a client's memory. NaN and infinity pass: the quantizer
    refuses them.

    Raises:
        UpdateError: the two states differ in the name, shape or dtype of a floating entry.
    """
    layout = layout_of(start)
    extra = {entry.name for entry in layout_of(local)} - {entry.name for entry in layout}
    if extra:
        raise UpdateError(f"the trained state has floating entries that the model has not: {_listed(extra)}")
    wide = any(entry.dtype == "float64" for entry in layout)
    vector: npt.NDArray[np.floating] = np.empty(dimension(layout), np.float64 if wide else np.float32)
    place = 0
    # inf - inf is NaN, which the quantizer reports with a reason; a warning here would say less.
    with np.errstate(invalid="ignore", over="ignore"):
        for entry in layout:
            change = vector[place : place + entry.size].reshape(entry.shape)
            pair = _entry_of(local, entry), _entry_of(start, entry)
            np.subtract(*pair, out=change, dtype=np.float64, casting="same_kind")
            place += entry.size
    return vector


def add_delta(state: Mapping[str, Array], delta_vector: FloatVector, layout: Layout) -> State:
    """A new state: the floating entries moved by a (d,) vector, all others copied from ``state``.

    The sum is taken in float64 and rounded once to the entry's dtype.

    Raises:
        UpdateError: the vector has another length than d, or the state does not fit the layout.
    """
    if delta_vector.shape != (dimension(layout),):
        raise UpdateError(f"the delta must have shape ({dimension(layout)},), found {delta_vector.shape}")
    moved = {name: np.array(array) for name, array in state.items()}
    start = 0
    for entry in layout:
        array = _entry_of(moved, entry)
        change = delta_vector[start : start + entry.size].reshape(entry.shape)
        # Widened a few elements at a time: no float64 array of the entry's size is made.
        np.add(array, change, out=array, dtype=np.float64, casting="same_kind")
        start += entry.size
    return moved


def require_same_entries(state: Mapping[str, Array], model: Mapping[str, Array]) -> None:
    """Refuse a state that does not have exactly the entries, and their shapes, of a model's.

    Raises:
        UpdateError: naming the first entry that differs.
    """
    missing, extra = model.keys() - state.keys(), state.keys() - model.keys()
    if missing or extra:
        raise UpdateError(
            f"the state's entries are not the model's: missing {_listed(missing)}; unknown {_listed(extra)}"
        )
    for name, array in model.items():
        if state[name].shape != array.shape:
            raise UpdateError(f"entry {name!r} has shape {state[name].shape}, the model wants {array.shape}")


def _entry_of(state: Mapping[str, Array], entry: Entry) -> Array:
    array = state.get(entry.name)
    if array is None:
        raise UpdateError(f"entry {entry.name!r} is missing, wanted {entry.dtype} {entry.shape}")
    if array.shape != entry.shape or array.dtype.name != entry.dtype:
        found = f"{array.dtype.name} {array.shape}"
        raise UpdateError(f"entry {entry.name!r} must be {entry.dtype} {entry.shape}, found {found}")
    return array


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _listed(names: set[str] | frozenset[str]) -> str:
    """A few names for a message; a hostile state may have very many."""
    shown = sorted(names)[:12]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "") if shown else "none"


class _Packed(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One entry on the wire: raw elements in C order, little-endian."""

    name: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
    dtype: Annotated[str, msgspec.Meta(max_length=16)]
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=MAX_AXIS)]], msgspec.Meta(max_length=MAX_AXES)]
    data: memoryview


_decoder = msgspec.msgpack.Decoder(Annotated[list[_Packed], msgspec.Meta(max_length=MAX_ENTRIES)])


def dump(state: Mapping[str, Array]) -> bytes:
    """A state as bytes for the wire: MessagePack of (name, dtype, shape, raw elements), sorted by name.

    Equal states give equal bytes, so their hashes can be compared.

    Raises:
        UpdateError: an entry has a dtype outside ``DTYPES``.
        ValueError: the state is larger than the format allows (entries, name length, axes).
    """
    layout_of(state)
    if len(state) > MAX_ENTRIES:
        raise ValueError(f"a state may have {MAX_ENTRIES} entries, found {len(state)}")
    packed = []
    for name in sorted(state):
        array = state[name]
        if len(name) > MAX_NAME or array.ndim > MAX_AXES:
            raise ValueError(f"entry {name[:40]!r}: wanted at most {MAX_NAME} characters, {MAX_AXES} axes")
        raw = np.ascontiguousarray(array, _wire_dtype(array.dtype.name))
        packed.append(_Packed(name, array.dtype.name, list(array.shape), raw.reshape(-1).view(np.uint8).data))
    return msgspec.msgpack.encode(packed)


def load(data: bytes | bytearray | memoryview) -> State:
    """The state that ``dump`` wrote; its arrays are fresh and writable. Safe on hostile bytes.

    Raises:
        ValueError: the bytes are no state: the message says what was wanted and found.
    """
    try:
        packed = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"these bytes are no model state: {error}") from None
    state: State = {}
    for entry in packed:
        if entry.name in state:
            raise ValueError(f"entry {entry.name!r} stands twice in the state")
        if entry.dtype not in DTYPES:
            raise ValueError(
                f"entry {entry.name!r} has dtype {entry.dtype!r}, wanted one of {_listed(DTYPES)}"
            )
        dtype = _wire_dtype(entry.dtype)
        wanted = _size(tuple(entry.shape)) * dtype.itemsize
        if len(entry.data) != wanted:
            raise ValueError(
                f"entry {entry.name!r}: {entry.dtype} {tuple(entry.shape)} takes {wanted} bytes, "
                f"found {len(entry.data)}"
            )
        state[entry.name] = _elements(entry.data, dtype).reshape(entry.shape).astype(dtype.newbyteorder("="))
    return state


def _elements(data: memoryview, dtype: np.dtype[Any]) -> Array:
    raw: Array = np.frombuffer(data, np.uint8)
    # A byte other than 0 and 1 is no bool: NumPy would keep it, and equal states would differ in bytes.
    return raw != 0 if dtype == np.bool_ else raw.view(dtype)


def _wire_dtype(name: str) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(name).newbyteorder("<")
    return dtype


def save(path: str | os.PathLike[str], state: Mapping[str, Array]) -> None:
    """Write a state as a NumPy ``.npz`` archive (``numpy.load`` opens it), whole or not at all.

    Equal states give equal files. Folders on the way are made.

    Raises:
        UpdateError: an entry has a dtype outside ``DTYPES``.
        OSError: the file cannot be written; what stood there before still does.
    """
    layout_of(state)

    def write(file: BinaryIO) -> None:
        # numpy.savez would take an entry named "file" for its own argument.
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in state.items():
                member = zipfile.ZipInfo(f"{name}.npy")  # with the format's first date, not today's
                with archive.open(member, "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)

    write_atomically(Path(path), write)


def read(path: str | os.PathLike[str]) -> State:
    """The state that ``save`` wrote.

    Raises:
        ValueError: the file is no such archive, or holds what no state may hold.
        OSError: the file cannot be read.
    """
    state: State = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as stream:
                    state[member.removesuffix(".npy")] = np.lib.format.read_array(stream, allow_pickle=False)
        layout_of(state)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{os.fspath(path)} is no model file (.npz): {error}") from None
    return state


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Replace a file by what ``write`` puts into the stream it is given, durably, or leave it as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name too must survive a power failure
    finally:
        os.close(folder)
