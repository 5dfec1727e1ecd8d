"""The global model on its way: an opaque payload, cut into parts and put together against its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from lightsecagg.errors import Reason, RemoteProtocolError
from lightsecagg.protocol.actions import Send, Stream
from lightsecagg.protocol.messages import ModelPart
from lightsecagg.protocol.wire import PART_BYTES, encode, part_count, part_length


def model_streams(round_number: int, receivers: Iterable[int], model: bytes) -> list[Stream]:
    """The model's parts for each receiver; all share the messages, however many wait to be delivered."""
    everybody = list(receivers)
    encoded: dict[int, bytes] = {}

    def message(index: int) -> bytes:
        if index in encoded:
            return encoded[index]
        part = memoryview(model)[index * PART_BYTES : (index + 1) * PART_BYTES]
        made = encode(ModelPart(round_number, index, part))
        if len(everybody) > 1:
            encoded[index] = made
        return made

    def sends(to: int) -> Iterator[Send]:
        for index in range(part_count(len(model), PART_BYTES)):
            yield Send(to, message(index))

    return [Stream(to, sends(to)) for to in everybody]


class ModelAssembly:
    """Takes the parts of one model in order.

    Args:
        length, digest: the model's length in bytes and SHA-256, as announced.
    """

    def __init__(self, length: int, digest: bytes) -> None:
        self._length = length
        self._digest = digest
        self._parts: list[bytes] = []
        self.model: bytes | None = None
        """The whole model, once it is here and matches its hash."""

    def take(self, index: int, data: memoryview) -> None:
        """Add the next part.

        Raises:
            RemoteProtocolError: it is not the next part, or has a wrong length.
        """
        count = part_count(self._length, PART_BYTES)
        if self.model is not None or index != len(self._parts) or index >= count:
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "a model part out of order")
        if len(data) != part_length(self._length, PART_BYTES, index):
            raise RemoteProtocolError(Reason.BAD_LENGTH, "a model part of a wrong length")
        self._parts.append(bytes(data))

    def complete(self) -> bool:
        """Put the parts together if all are here; whether that made the model whole.

        Raises:
            RemoteProtocolError: the model does not match its announced hash (``model_mismatch``).
        """
        if self.model is not None or len(self._parts) < part_count(self._length, PART_BYTES):
            return False
        model = b"".join(self._parts)
        self._parts.clear()
        if hashlib.sha256(model).digest() != self._digest:
            raise RemoteProtocolError(Reason.MODEL_MISMATCH, "the model does not match its announced hash")
        self.model = model
        return True
