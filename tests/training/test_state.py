"""Model states as vectors, bytes and files, and the broken ones that are refused."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightsecagg.errors import UpdateError
from lightsecagg.training.base import State
from lightsecagg.training.state import (
    DTYPES,
    Entry,
    add_delta,
    delta,
    dimension,
    dump,
    layout_of,
    load,
    read,
    save,
    to_vector,
)

arrays = hnp.arrays(
    st.sampled_from(sorted(DTYPES)).map(np.dtype),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
states = st.dictionaries(st.text(max_size=12), arrays, max_size=5)


def a_state() -> State:
    return {
        "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "layer.bias": np.array([0.5, -0.5]),
        "norm.batches": np.array(41, np.int64),
        "norm.scale": np.array(2.0, np.float32),
    }


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(
        array.dtype == right[name].dtype
        and array.shape == right[name].shape
        and array.tobytes() == right[name].tobytes()
        for name, array in left.items()
    )


def packed(*entries: list[Any]) -> bytes:
    return msgspec.msgpack.encode(list(entries))


# --- vectors


def test_the_layout_names_the_floating_entries_in_a_fixed_order() -> None:
    expected = (
        Entry("layer.bias", (2,), "float64"),
        Entry("layer.weight", (2, 3), "float32"),
        Entry("norm.scale", (), "float32"),
    )
    assert layout_of(a_state()) == expected
    assert layout_of(dict(reversed(a_state().items()))) == expected
    assert dimension(expected) == 9


def test_the_vector_follows_the_layout() -> None:
    vector = to_vector(a_state(), layout_of(a_state()))
    assert vector.dtype == np.float64
    assert vector.tolist() == [0.5, -0.5, 0, 1, 2, 3, 4, 5, 2]


def test_delta_added_to_the_start_gives_the_trained_entries_and_the_servers_integers() -> None:
    start, trained = a_state(), a_state()
    trained["layer.weight"] = trained["layer.weight"] + np.float32(0.25)
    trained["norm.batches"] = np.array(99)
    change = delta(trained, start)
    assert change.tolist() == [0, 0] + [0.25] * 6 + [0]
    moved = add_delta(start, change, layout_of(start))
    assert same(moved, {**trained, "norm.batches": np.array(41)})
    assert start["layer.weight"][0, 0] == 0  # the start is left as it was
    moved["norm.batches"][...] = 7
    assert start["norm.batches"] == 41


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(*[hnp.arrays(np.float32, n, elements=st.floats(-8, 8, width=32))] * 2)
    )
)
def test_adding_a_delta_undoes_subtracting_for_float32(pair: tuple[np.ndarray, np.ndarray]) -> None:
    trained, start = {"w": pair[0]}, {"w": pair[1]}
    moved = add_delta(start, delta(trained, start), layout_of(start))
    # A difference of up to 16 is rounded to float32 once (by 2^-21 at most), the sum of up to 8 once more.
    np.testing.assert_allclose(moved["w"], trained["w"], rtol=0, atol=2.0**-21 + 2.0**-22)


def test_a_delta_is_as_wide_as_the_widest_entry() -> None:
    narrow, wide = {"w": np.ones(3, np.float32)}, {"w": np.ones(3, np.float32), "v": np.full(2, 1 / 3)}
    assert delta(narrow, narrow).dtype == np.float32
    assert delta(wide, {**wide, "v": np.zeros(2)}).tolist()[:2] == [1 / 3, 1 / 3]


def test_infinities_reach_the_quantizer_without_a_warning() -> None:
    infinite = {"w": np.array([np.inf, 1], np.float32)}
    assert np.isnan(delta(infinite, infinite)[0])


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("layer.bias", None, "'layer.bias' is missing"),
        ("layer.bias", np.zeros(3), "must be float64 \\(2,\\), found float64 \\(3,\\)"),
        ("layer.bias", np.zeros(2, np.float32), "found float32"),
        ("another", np.zeros(2), "has not: another"),
        ("layer.bias", np.zeros(2, complex), "dtype complex128"),
        ("layer.bias", np.array([None, None]), "dtype object"),
    ],
)
def test_a_trained_state_of_another_layout_is_refused(name: str, array: Any, message: str) -> None:
    trained = {key: value for key, value in {**a_state(), name: array}.items() if value is not None}
    with pytest.raises(UpdateError, match=message):
        delta(trained, a_state())


def test_a_delta_of_another_length_is_refused() -> None:
    with pytest.raises(UpdateError, match=r"must have shape \(9,\), found \(8,\)"):
        add_delta(a_state(), np.zeros(8), layout_of(a_state()))


# --- bytes


@given(states)
def test_bytes_bring_back_the_same_state(state: State) -> None:
    loaded = load(dump(state))
    assert same(loaded, state)
    assert all(array.flags.writeable and array.flags.owndata for array in loaded.values())


@given(states)
def test_equal_states_give_equal_bytes_whatever_their_order(state: State) -> None:
    assert dump(dict(reversed(state.items()))) == dump(state)


def test_memory_order_and_byte_order_do_not_show() -> None:
    plain = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    other = {"w": np.asfortranarray(plain["w"]).astype(">f4", order="F")}
    assert dump(other) == dump(plain)


def test_a_view_of_a_larger_buffer_loads() -> None:
    data = dump(a_state())
    assert same(load(memoryview(b"xx" + data)[2:]), a_state())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no model state"),
        (b"\x80", "no model state"),
        (packed(["w", "float32", [2]]), "no model state"),
        (packed(["w", "float32", [2], b"12345678", 1]), "no model state"),
        (packed(["w", "float32", [-1], b""]), "no model state"),
        (packed(["w", "float32", [2**31], b""]), "no model state"),
        (packed(["w", "float32", [1] * 33, b"1234"]), "no model state"),
        (packed(["w" * 1025, "float32", [1], b"1234"]), "no model state"),
        (b"\xdd\x00\x01\x00\x01", "no model state"),
        (packed(["w", "float32", [2], b"1234567"]), "float32 \\(2,\\) takes 8 bytes, found 7"),
        (packed(["w", "float32", [2**30] * 32, b"12"]), "takes .* bytes, found 2"),
        (packed(["w", "object", [1], b"12345678"]), "has dtype 'object', wanted"),
        (packed(["w", "<f4", [1], b"1234"]), "has dtype '<f4', wanted"),
        (packed(["w", "bool", [1], b"\x01"], ["w", "bool", [1], b"\x01"]), "'w' stands twice"),
    ],
)
def test_bytes_that_are_no_state_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(data)


def test_no_pickle_is_ever_loaded(trap: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([trap]), allow_pickle=True)
    for data in (buffer.getvalue(), packed(["w", "object", [1], buffer.getvalue()])):
        with pytest.raises(ValueError, match=r"no model state|has dtype 'object'"):
            load(data)
    np.savez(tmp_path / "objects.npz", w=np.array([trap]))
    with pytest.raises(ValueError, match=r"objects\.npz is no model file"):
        read(tmp_path / "objects.npz")


@given(st.data())
def test_damaged_bytes_are_a_value_error_or_a_state(data: st.DataObject) -> None:
    whole = bytearray(dump(a_state()))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        state = load(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except ValueError:
        return
    layout_of(state)


def test_a_bool_is_zero_or_one() -> None:
    assert dump(load(packed(["w", "bool", [2], b"\x02\x00"]))) == dump({"w": np.array([True, False])})


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"w": np.zeros(1, complex)}, UpdateError, "complex128"),
        ({"w" * 1025: np.zeros(1)}, ValueError, "1024 characters"),
    ],
)
def test_states_that_the_format_cannot_hold_are_refused(
    state: State, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dump(state)


# --- files


@given(states.map(lambda state: {f"e{number}": array for number, array in enumerate(state.values())}))
def test_files_bring_back_the_same_state(tmp_path_factory: pytest.TempPathFactory, state: State) -> None:
    path = tmp_path_factory.mktemp("model") / "model.npz"
    save(path, state)
    assert same(read(path), state)


def test_the_file_opens_with_numpy_and_keeps_every_name(tmp_path: Path) -> None:
    state = {**a_state(), "file": np.ones(1), "allow_pickle": np.zeros(2)}
    save(tmp_path / "deep" / "model", state)
    with np.load(tmp_path / "deep" / "model", allow_pickle=False) as archive:
        assert same({name: archive[name] for name in archive.files}, state)


def test_equal_states_give_equal_files(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", a_state())
    save(tmp_path / "b.npz", a_state())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_save_that_fails_leaves_the_last_good_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.npz"
    save(path, a_state())

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save(path, {"w": np.zeros(5)})
    assert same(read(path), a_state())
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_is_on_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("replace"), replace(*paths))[1])
    save(tmp_path / "model.npz", a_state())
    assert steps == ["fsync", "replace", "fsync"]


def test_files_that_are_no_model_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"model\.npz is no model file"):
        read(path)
    save(path, a_state())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"model\.npz is no model file"):
        read(path)
