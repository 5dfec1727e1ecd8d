"""Elements to bytes and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.field import PrimeField
from lightsecagg.packing import pack, unpack
from tests.core import oracle
from tests.core.strategies import MANY, elements

ORDERS = (*oracle.PRIMES, 2, 251, 257)
packable = st.sampled_from(ORDERS).flatmap(
    lambda p: st.tuples(st.just(p), st.integers(0, 20).flatmap(lambda size: elements(p, size)))
)


@given(packable)
@MANY
def test_bytes_are_the_oracles_and_come_back(case: tuple[int, list[int]]) -> None:
    p, values = case
    field = PrimeField(p)
    data = pack(field, np.array(values, dtype=np.uint32))
    assert data == oracle.pack(values, p)
    for buffer in (data, memoryview(data), memoryview(b"x" + data)[1:]):
        found = unpack(field, buffer, len(values))
        assert found.dtype == np.uint32
        assert found.tolist() == values


@pytest.mark.parametrize("p", ORDERS)
def test_slices_are_packed_as_their_copies(p: int) -> None:
    field = PrimeField(p)
    values = np.arange(24, dtype=np.uint32).reshape(4, 6) % p
    for view in (values[1], values[:, 2], values[::2, 3], values[0, ::-1]):
        assert pack(field, view) == oracle.pack(view.tolist(), p)


@pytest.mark.parametrize("p", ORDERS)
def test_another_length_is_refused(p: int) -> None:
    field = PrimeField(p)
    data = oracle.pack([1, 0, 1], p)
    assert unpack(field, data, 3).tolist() == [1, 0, 1]
    for wrong, count in ((data[:-1], 3), (data + b"\0", 3), (data, 2), (data, 4), (b"", 1), (data, 0)):
        with pytest.raises(RemoteProtocolError, match="wanted") as error:
            unpack(field, wrong, count)
        assert error.value.reason is Reason.BAD_LENGTH


@pytest.mark.parametrize("p", ORDERS)
def test_an_element_that_is_not_below_the_order_is_refused(p: int) -> None:
    field = PrimeField(p)
    width = field.element_bytes
    at_most = oracle.pack([0, p - 1], p)
    assert unpack(field, at_most, 2).tolist() == [0, p - 1]
    for value in {p, 256**width - 1}:
        for place in range(3):
            values = [b"\0" * width] * 3
            values[place] = value.to_bytes(width, "little")
            with pytest.raises(RemoteProtocolError) as error:
                unpack(field, b"".join(values), 3)
            assert error.value.reason is Reason.BAD_ELEMENT
            assert str(value) not in str(error.value).replace(str(p), "")
