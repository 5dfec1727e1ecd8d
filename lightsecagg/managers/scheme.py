"""Secure or plain: what a run's settings mean for both sides' machines and for a client's update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

from lightsecagg.errors import ConfigError, LocalProtocolError, ParameterError
from lightsecagg.field import PrimeField
from lightsecagg.identity import Identity, Roster
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.buffered.machine import BufferMachine
from lightsecagg.protocol.client_machine import ClientMachine
from lightsecagg.protocol.messages import MAX_ENTRIES, Entry, Member
from lightsecagg.protocol.server_machine import ServerMachine
from lightsecagg.protocol.terms import Run
from lightsecagg.quantize import FixedPoint
from lightsecagg.settings import Settings
from lightsecagg.spans import Spans
from lightsecagg.training.state import Layout

_MOST_LAYOUT = 2**19  # bytes: a RoundStart holds the layout beside a cohort of 1024 within one message

AnyClientRound = ClientMachine[Any, Any]


@dataclass(frozen=True)
class Free:
    """A client that may be drawn into a round: it said so, with its key in a secure run."""

    member: Member | None


def plan(settings: Settings, num_clients: int) -> Parameters:
    """N, U and T for a round of ``num_clients``: explicit ones as they are, others from the rates.

    Raises:
        ConfigError: they do not work for so many clients.
    """
    given = settings.secure_aggregation_args
    survivors, threshold = given.targeted_number_active_clients, given.privacy_guarantee
    try:
        if survivors is not None and threshold is not None:
            return Parameters(num_clients, survivors, threshold)
        planned = Parameters.from_rates(num_clients, given.dropout_rate, given.collusion_rate)
        return Parameters(
            num_clients,
            planned.target_survivors if survivors is None else survivors,
            planned.privacy_threshold if threshold is None else threshold,
        )
    except ParameterError as error:
        raise ConfigError(f"secure_aggregation_args: {error}") from None


def choose_field(settings: Settings, quantizer: FixedPoint, summands: int) -> tuple[PrimeField, str | None]:
    """The field of the run, and a notice where it is not the configured one.

    Args:
        settings, quantizer: of the run.
        summands: updates in a sum at most, each as often as it counts.

    Raises:
        ConfigError: the prime is composite, or too small and ``strict`` is set.
    """
    given = settings.secure_aggregation_args
    wanted = given.prime_number
    try:
        if wanted == "auto":
            return quantizer.smallest_field(summands), None
        field = PrimeField(int(wanted))
        if quantizer.fits(field, summands) or given.strict:
            quantizer.check(field, summands)
            return field, None
        larger = quantizer.smallest_field(summands)
    except ParameterError as error:
        raise ConfigError(f"secure_aggregation_args.prime_number: {error}") from None
    return larger, (
        f"secure_aggregation_args.prime_number: {field.order} cannot hold the sum of {summands} updates "
        f"at clip {given.clip} and {given.precision_parameter} fraction bits; {larger.order} is used instead"
    )


def make_quantizer(settings: Settings) -> FixedPoint:
    """The quantizer that the settings describe.

    Raises:
        ConfigError: its numbers do not work.
    """
    given = settings.secure_aggregation_args
    try:
        return FixedPoint(given.clip, given.precision_parameter, given.max_weight, settings.rounding)
    except ParameterError as error:
        raise ConfigError(f"secure_aggregation_args: {error}") from None


def entries_of(layout: Layout) -> list[Entry]:
    """The model's entries as they stand in messages.

    Raises:
        ConfigError: they are too many to be announced.
    """
    entries = [Entry(entry.name, entry.shape, entry.dtype) for entry in layout]
    size = len(msgspec.msgpack.encode(entries))
    if size > _MOST_LAYOUT or len(entries) > MAX_ENTRIES:
        raise ConfigError(
            f"model_args.model: {len(entries)} entries take {size} bytes to name; "
            f"{MAX_ENTRIES} entries and {_MOST_LAYOUT} bytes are the limits"
        )
    return entries


def load_roster(settings: Settings) -> Roster | None:
    """The roster that the settings name, if any."""
    path = settings.secure_aggregation_args.roster
    return None if path is None else Roster.load(path)


def check_roster(roster: Roster, settings: Settings) -> None:
    """Whether everybody who may take part is in it.

    Raises:
        ConfigError: a rank is missing.
    """
    missing = sorted(set(range(1, settings.device_args.worker_num + 1)) - roster.keys.keys())
    if missing:
        raise ConfigError(
            f"secure_aggregation_args.roster: {settings.secure_aggregation_args.roster} lacks rank "
            f"{', '.join(map(str, missing[:10]))}, and device_args.worker_num is "
            f"{settings.device_args.worker_num}; add it (`lightsecagg roster add`) or lower worker_num"
        )


class Scheme(ABC):
    """How updates travel in a run; the same object makes both sides' machines."""

    notices: list[str]
    """What people should be told once about the choice."""

    def seen_by_all(self, given: str) -> Self:  # noqa: ARG002
        """A scheme like this one, for a run whose clients were all given these training settings.

        Different ones could make a sum that shows one client, just as different models could.
        """
        return self

    @abstractmethod
    def agreed(self) -> dict[str, str]:
        """What server and clients must hold alike beyond the settings."""

    @abstractmethod
    def server_round(
        self,
        run: Run,
        number: int,
        parameters: Parameters,
        cohort: Sequence[Free],
        model: bytes,
        spans: Spans,
    ) -> ServerMachine:
        """The server's machine for one round."""

    def buffered_server(self, run: Run, spans: Spans) -> BufferMachine:  # noqa: ARG002
        """The server's machine for a whole asynchronous run.

        Raises:
            LocalProtocolError: this scheme is of synchronous rounds.
        """
        raise LocalProtocolError(f"{type(self).__name__} goes round by round")

    @abstractmethod
    def client_round(
        self,
        identity: Identity,
        rank: int,
        run: Run,
        *,
        before: AnyClientRound | None,
        sequence: int,
        after_round: int,
        max_model_bytes: int,
        spans: Spans,
    ) -> AnyClientRound:
        """A client's machine for its next round.

        Args:
            identity, rank, run: who takes part in what.
            before: its machine for the one before, in the same session.
            sequence: of its key.
            after_round: the highest round number seen.
            max_model_bytes: longest model it takes.
            spans: is told what takes how long.
        """

    @abstractmethod
    def update(self, delta: npt.NDArray[np.floating], num_samples: int) -> Any:
        """What a client's machine uploads; it prints without the update.

        Raises:
            UpdateError: the delta is not finite.
        """

    def clipped(self, delta: npt.NDArray[np.floating]) -> int:  # noqa: ARG002
        """How many coordinates of the update will be clipped."""
        return 0
