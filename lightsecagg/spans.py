"""Spans: which step of a round runs from when to when, told to whoever was passed in to listen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

SpanName = Literal[
    "expand",
    "encode",
    "seal",
    "send",
    "relay",
    "receive",
    "unseal",
    "train",
    "quantize",
    "mask",
    "upload",
    "endorse",
    "sum",
    "decode",
    "evaluate",
]

Spans = Callable[[SpanName], AbstractContextManager[object]]
"""From a step's name to a context manager that lasts as long as the step."""

_NO_SPAN: AbstractContextManager[object] = nullcontext()


def no_spans(_: SpanName) -> AbstractContextManager[object]:
    """Where nobody listens."""
    return _NO_SPAN
