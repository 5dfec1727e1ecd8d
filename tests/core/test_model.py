"""The global model in parts: whole and matching its hash, or not at all."""

from __future__ import annotations

import hashlib

import pytest

from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.protocol.messages import ModelPart
from lightsecagg.protocol.model import ModelAssembly, model_streams
from lightsecagg.protocol.wire import MAX_MESSAGE, PART_BYTES, from_server

SIZES = [0, 1, 1000, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, 2 * PART_BYTES + 17]


def model_of(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size]


def assembly_of(model: bytes) -> ModelAssembly:
    return ModelAssembly(len(model), hashlib.sha256(model).digest())


def parts_of(model: bytes) -> list[memoryview]:
    return [memoryview(model)[start : start + PART_BYTES] for start in range(0, len(model), PART_BYTES)]


def refusal(assembly: ModelAssembly, index: int, data: bytes | memoryview) -> Reason:
    with pytest.raises(RemoteProtocolError) as error:
        assembly.take(index, memoryview(data))
    return error.value.reason


@pytest.mark.parametrize("size", SIZES)
def test_a_model_goes_out_in_parts_and_comes_together(size: int) -> None:
    model = model_of(size)
    other, stream = model_streams(5, (2, 3), model)
    assert (other.to, stream.to) == (2, 3)
    sends = list(stream.sends)
    for twin, send in zip(other.sends, sends, strict=True):
        assert twin.to == 2
        assert twin.message is send.message  # one copy, however many clients are slow
    assembly = assembly_of(model)
    done = assembly.complete() if size == 0 else False
    for index, send in enumerate(sends):
        assert not done
        assert send.to == 3
        assert len(send.message) <= MAX_MESSAGE
        part = from_server(send.message)
        assert isinstance(part, ModelPart)
        assert (part.round, part.index) == (5, index)
        assembly.take(part.index, part.data)
        done = assembly.complete()
    assert done
    assert assembly.model == model


def test_an_empty_model_is_whole_at_once_if_its_hash_matches() -> None:
    assembly = assembly_of(b"")
    assert assembly.model is None
    assert assembly.complete()
    assert assembly.model == b""
    assert not assembly.complete()
    assert refusal(assembly, 0, b"") is Reason.PROTOCOL_VIOLATION
    with pytest.raises(RemoteProtocolError) as error:
        ModelAssembly(0, bytes(32)).complete()
    assert error.value.reason is Reason.MODEL_MISMATCH


def test_parts_out_of_order_repeated_or_left_out_are_refused() -> None:
    model = model_of(3 * PART_BYTES)
    first, second, third = parts_of(model)
    assembly = assembly_of(model)
    assert refusal(assembly, 1, second) is Reason.PROTOCOL_VIOLATION
    assembly.take(0, first)
    assert refusal(assembly, 0, first) is Reason.PROTOCOL_VIOLATION
    assert refusal(assembly, 2, third) is Reason.PROTOCOL_VIOLATION
    assert not assembly.complete()
    assembly.take(1, second)
    assembly.take(2, third)
    assert assembly.complete()
    assert refusal(assembly, 3, b"x") is Reason.PROTOCOL_VIOLATION
    assert refusal(assembly, 0, first) is Reason.PROTOCOL_VIOLATION
    assert assembly.model == model


@pytest.mark.parametrize("size", [1000, PART_BYTES, PART_BYTES + 17])
def test_parts_of_a_wrong_length_are_refused(size: int) -> None:
    model = model_of(size)
    parts = parts_of(model)
    for place, part in enumerate(parts):
        for wrong in (part[:-1], bytes(part) + b"\0", b""):
            assembly = assembly_of(model)
            for index in range(place):
                assembly.take(index, parts[index])
            assert refusal(assembly, place, wrong) is Reason.BAD_LENGTH
            assembly.take(place, part)


@pytest.mark.parametrize("size", [1000, PART_BYTES])
def test_a_part_beyond_the_announced_length_is_refused(size: int) -> None:
    model = model_of(size)
    for extra in (b"x", b""):
        assembly = assembly_of(model)
        assembly.take(0, memoryview(model))
        with pytest.raises(RemoteProtocolError):
            assembly.take(1, memoryview(extra))


def test_a_model_that_does_not_match_its_hash_is_refused_and_never_shown() -> None:
    model = model_of(PART_BYTES + 100)
    changed = bytearray(model)
    changed[-1] ^= 1
    assembly = assembly_of(model)
    for index, part in enumerate(parts_of(bytes(changed))):
        assert not assembly.complete()
        assembly.take(index, part)
    with pytest.raises(RemoteProtocolError) as error:
        assembly.complete()
    assert error.value.reason is Reason.MODEL_MISMATCH
    assert assembly.model is None


def test_parts_are_copied_so_a_reused_buffer_changes_nothing() -> None:
    model = model_of(1000)
    buffer = bytearray(model)
    assembly = assembly_of(model)
    assembly.take(0, memoryview(buffer))
    buffer[:] = bytes(1000)
    assert assembly.complete()
    assert assembly.model == model
