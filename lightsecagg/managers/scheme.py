"""Secure or plain: what a run's settings mean for both sides' machines and for a client's update."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

from lightsecagg.errors import ConfigError, ParameterError
from lightsecagg.field import PrimeField
from lightsecagg.identity import Identity, Roster
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.client_machine import ClientMachine
from lightsecagg.protocol.messages import MAX_ENTRIES, Entry, Member
from lightsecagg.protocol.plain import Floats, PlainClientRound, PlainServerRound, weighted
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.server_machine import ServerMachine
from lightsecagg.protocol.terms import Floors, Run, make_terms
from lightsecagg.quantize import FixedPoint, WeightedUpdate
from lightsecagg.settings import Settings
from lightsecagg.spans import Spans
from lightsecagg.training.state import Layout, dimension

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


def choose_field(settings: Settings, quantizer: FixedPoint) -> tuple[PrimeField, str | None]:
    """The field of the run, and a notice where it is not the configured one.

    Raises:
        ConfigError: the prime is composite, or too small and ``strict`` is set.
    """
    given = settings.secure_aggregation_args
    wanted, clients = given.prime_number, settings.cohort_size
    try:
        if wanted == "auto":
            return quantizer.smallest_field(clients), None
        field = PrimeField(int(wanted))
        if quantizer.fits(field, clients) or given.strict:
            quantizer.check(field, clients)
            return field, None
        larger = quantizer.smallest_field(clients)
    except ParameterError as error:
        raise ConfigError(f"secure_aggregation_args.prime_number: {error}") from None
    return larger, (
        f"secure_aggregation_args.prime_number: {field.order} cannot hold the sum of {clients} clients "
        f"at clip {given.clip} and {given.precision_parameter} fraction bits; {larger.order} is used instead"
    )


def make_quantizer(settings: Settings) -> FixedPoint:
    """The quantizer that the settings describe.

    Raises:
        ConfigError: its numbers do not work.
    """
    given = settings.secure_aggregation_args
    try:
        return FixedPoint(given.clip, given.precision_parameter, given.max_weight, given.rounding)
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


def _check_roster(roster: Roster, settings: Settings) -> None:
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

    @abstractmethod
    def client_round(
        self,
        identity: Identity,
        rank: int,
        run: Run,
        *,
        sequence: int,
        after_round: int,
        max_model_bytes: int,
        spans: Spans,
    ) -> AnyClientRound:
        """A client's machine for its next round."""

    @abstractmethod
    def update(self, delta: npt.NDArray[np.floating], num_samples: int) -> Any:
        """What a client's machine uploads; it prints without the update.

        Raises:
            UpdateError: the delta is not finite.
        """

    def clipped(self, delta: npt.NDArray[np.floating]) -> int:  # noqa: ARG002
        """How many coordinates of the update will be clipped."""
        return 0


class SecureScheme(Scheme):
    """LightSecAgg."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self._settings = settings
        self._quantizer = make_quantizer(settings)
        self._field, notice = choose_field(settings, self._quantizer)
        self.notices = [] if notice is None else [notice]
        entries = entries_of(layout)
        self._terms = make_terms(
            self._quantizer, entries, num_clients=settings.cohort_size, field=self._field
        )
        self._roster = load_roster(settings)
        if self._roster is not None:
            _check_roster(self._roster, settings)
        elif settings.comm_args.backend != "LOCAL":
            is_open = settings.comm_args.authenticated_as is None
            self.notices.append(
                f"no roster: {'whoever connects may take part, and ' if is_open else ''}the server could "
                "pose as clients; secure_aggregation_args.roster lists who may (`lightsecagg roster add`)"
            )

    def clipped(self, delta: npt.NDArray[np.floating]) -> int:
        return self._quantizer.inspect(delta)[1]

    def seen_by_all(self, given: str) -> Self:
        application = hashlib.sha256(given.encode()).digest()
        bound = copy.copy(self)
        bound._terms = msgspec.structs.replace(self._terms, application=application)
        return bound

    def agreed(self) -> dict[str, str]:
        return {"secure_aggregation_args.prime_number": str(self._field.order)}

    def server_round(
        self,
        run: Run,
        number: int,
        parameters: Parameters,
        cohort: Sequence[Free],
        model: bytes,
        spans: Spans,
    ) -> ServerMachine:
        members = [client.member for client in cohort if client.member is not None]
        slots = self._settings.secure_aggregation_args.upload_slots
        return ServerRound(
            run, number, parameters, self._terms, members, model, upload_slots=slots, spans=spans
        )

    def client_round(
        self,
        identity: Identity,
        rank: int,
        run: Run,
        *,
        sequence: int,
        after_round: int,
        max_model_bytes: int,
        spans: Spans,
    ) -> AnyClientRound:
        floors = Floors(
            self._settings.min_clients,
            self._settings.min_privacy_threshold,
            self._settings.require_unique_survivor_set,
            max_model_bytes,
        )
        return ClientRound(
            identity,
            rank,
            run,
            self._terms,
            floors=floors,
            roster=self._roster,
            sequence=sequence,
            after_round=after_round,
            spans=spans,
        )

    def update(self, delta: npt.NDArray[np.floating], num_samples: int) -> WeightedUpdate:
        # It is quantized as it goes under its mask; what cannot be is told here, where training failed.
        return WeightedUpdate(delta, self._quantizer.check_update(delta, num_samples))


class PlainScheme(Scheme):
    """Federated averaging without masks."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self._settings = settings
        self._dimension = dimension(layout)
        self._max_weight = settings.secure_aggregation_args.max_weight
        self.notices = []

    def agreed(self) -> dict[str, str]:
        return {}

    def server_round(
        self,
        run: Run,  # noqa: ARG002
        number: int,
        parameters: Parameters,
        cohort: Sequence[Free],
        model: bytes,
        spans: Spans,
    ) -> ServerMachine:
        return PlainServerRound(
            number,
            len(cohort),
            parameters.target_survivors,
            self._dimension,
            self._max_weight,
            model,
            upload_slots=self._settings.secure_aggregation_args.upload_slots,
            spans=spans,
        )

    def client_round(
        self,
        identity: Identity,  # noqa: ARG002
        rank: int,  # noqa: ARG002
        run: Run,  # noqa: ARG002
        *,
        sequence: int,  # noqa: ARG002
        after_round: int,
        max_model_bytes: int,
        spans: Spans,
    ) -> AnyClientRound:
        return PlainClientRound(
            self._dimension, after_round=after_round, max_model_bytes=max_model_bytes, spans=spans
        )

    def update(self, delta: npt.NDArray[np.floating], num_samples: int) -> Floats:
        return weighted(delta, num_samples, self._max_weight)


def make_scheme(settings: Settings, layout: Layout) -> Scheme:
    """The scheme that the settings ask for.

    Raises:
        ConfigError: its numbers do not work.
    """
    return SecureScheme(settings, layout) if settings.secure else PlainScheme(settings, layout)
