"""How many examples, and where they come from: cases of the codec, and messages out of their own types."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from msgspec import inspect

from tests.core import oracle

FEW = settings(deadline=None, max_examples=30)
SOME = settings(deadline=None, max_examples=100)
MANY = settings(deadline=None, max_examples=300)
SOME_OF_EACH = settings(SOME, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""For fixtures that choose an implementation and keep no state."""

seeds = st.binary(min_size=32, max_size=32)
orders = st.sampled_from(oracle.PRIMES)


def elements(p: int, size: int) -> st.SearchStrategy[list[int]]:
    """Field elements, the awkward ones often."""
    edge = st.sampled_from(sorted({0, 1, p // 2, (p // 2 + 1) % p, p - 1}))
    return st.lists(edge | st.integers(0, p - 1), min_size=size, max_size=size)


@st.composite
def choices(draw: st.DrawFn, largest: int = 40) -> tuple[int, int, int, int]:
    """(N, U, T, p) that fit together."""
    p = draw(orders)
    n = draw(st.integers(2, min(largest, (p - 1) // 2)))
    u = draw(st.integers(1, n).filter(lambda u: n + u < p))
    t = draw(st.integers(0, u - 1))
    return n, u, t, p


def values_of(info: inspect.Type) -> st.SearchStrategy[Any]:
    """Values of a msgspec type, bounds included."""
    match info:
        case inspect.IntType():
            low = info.ge if info.ge is not None else -(2**63)
            high = info.le if info.le is not None else (2**64 if info.lt is None else info.lt) - 1
            return st.integers(low, high) | st.sampled_from([low, high])
        case inspect.FloatType():
            return st.floats(allow_nan=False)
        case inspect.StrType():
            return st.text(max_size=min(info.max_length or 40, 40))
        case inspect.BytesType() | inspect.MemoryViewType():
            low, high = info.min_length or 0, info.max_length
            sizes = st.binary(min_size=low, max_size=min(high if high is not None else 80, max(low, 80)))
            return sizes if isinstance(info, inspect.BytesType) else sizes.map(memoryview)
        case inspect.EnumType():
            return st.sampled_from(list(info.cls))
        case inspect.VarTupleType():
            low = info.min_length or 0
            return st.lists(values_of(info.item_type), min_size=low, max_size=low + 3).map(tuple)
        case inspect.DictType():
            return st.dictionaries(values_of(info.key_type), values_of(info.value_type), max_size=3)
        case inspect.UnionType():
            return st.one_of(*(values_of(each) for each in info.types))
        case inspect.NoneType():
            return st.none()
        case inspect.TupleType():
            return st.tuples(*(values_of(each) for each in info.item_types))
        case inspect.StructType():
            return st.builds(info.cls, *(values_of(field.type) for field in info.fields))
    raise AssertionError(f"a kind of field that has no strategy yet: {info}")


def messages(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Messages of one type."""
    return values_of(inspect.type_info(kind))
