"""Secure or plain, round by round or buffered: what each means for both sides' machines."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from lightsecagg.errors import ConfigError, ParameterError
from lightsecagg.identity import Identity
from lightsecagg.managers.scheme import (
    AnyClientRound,
    Free,
    Scheme,
    check_roster,
    choose_field,
    entries_of,
    load_roster,
    make_quantizer,
    plan,
)
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.buffered.buffer import Rules
from lightsecagg.protocol.buffered.client import ClientUpload
from lightsecagg.protocol.buffered.holder import Holder
from lightsecagg.protocol.buffered.machine import BufferMachine
from lightsecagg.protocol.buffered.plain import PlainBufferedServer
from lightsecagg.protocol.buffered.server import BufferedServer
from lightsecagg.protocol.client import ClientRound
from lightsecagg.protocol.messages import MAX_LISTED, Buffering, Entry, Terms
from lightsecagg.protocol.plain import Floats, PlainClientRound, PlainServerRound, weighted
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.server_machine import ServerMachine
from lightsecagg.protocol.terms import (
    Floors,
    Run,
    buffered_parameters,
    make_buffered_terms,
    make_terms,
    most_summands,
)
from lightsecagg.quantize import WeightedUpdate
from lightsecagg.settings import Settings
from lightsecagg.spans import Spans
from lightsecagg.staleness import parse_staleness, reveals, weight_table
from lightsecagg.training.state import Layout, dimension

_USUAL_BUFFER = 10  # updates in a list, where many clients take part; FedBuff's choice


def plan_buffering(settings: Settings, parameters: Parameters) -> Buffering:
    """The numbers of an asynchronous run.

    Raises:
        ConfigError: they do not fit together.
    """
    given = settings.secure_aggregation_args
    least = _least_clients(settings, parameters)
    _check_there_are(least, settings, parameters)
    # Planned alike with and without masks: one is run to compare the other with.
    usual = max(parameters.privacy_threshold + 2, min(_USUAL_BUFFER, parameters.num_clients // 2))
    size = given.buffer_size or max(least, usual)
    if not least <= size <= MAX_LISTED:
        raise ConfigError(
            f"secure_aggregation_args.buffer_size: wanted {least} (min_buffer_clients) to {MAX_LISTED}, "
            f"found {size}"
        )
    try:
        table = weight_table(parse_staleness(given.staleness), given.staleness_values, given.max_staleness)
    except ParameterError as error:
        raise ConfigError(f"secure_aggregation_args: {error}") from None
    return Buffering(
        parameters.num_clients, parameters.target_survivors, parameters.privacy_threshold, size, table
    )


def _check_there_are(least: int, settings: Settings, parameters: Parameters) -> None:
    """Whether there can be a list of so many clients, from the beginning on.

    Raises:
        ConfigError: too few take part.
    """
    if least > parameters.num_clients:
        raise ConfigError(
            f"device_args.worker_num: wanted at least {least}, the clients in a list "
            f"(secure_aggregation_args.min_buffer_clients; T + 2 or more), found {parameters.num_clients}"
        )
    needed = max(least, settings.min_clients, parameters.target_survivors if settings.secure else 1)
    if settings.min_joined < needed:
        raise ConfigError(
            f"secure_aggregation_args.min_joined: wanted at least {needed}, without whom no list is made, "
            f"found {settings.min_joined}"
        )


def _least_clients(settings: Settings, parameters: Parameters) -> int:
    """Fewest distinct clients in a list: with masks, so many that T colluders leave two updates unknown.

    Raises:
        ConfigError: the file asks for fewer.
    """
    given = settings.secure_aggregation_args.min_buffer_clients
    if not settings.secure:
        return 1 if given is None else given
    least = parameters.privacy_threshold + 2
    if given is not None and given < least:
        raise ConfigError(
            f"secure_aggregation_args.min_buffer_clients: wanted at least T + 2 = {least}, found {given}"
        )
    return least if given is None else given


class SecureScheme(Scheme):
    """LightSecAgg."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self._settings = settings
        self._quantizer = make_quantizer(settings)
        self._terms, self.notices = self._make_terms(entries_of(layout))
        self._roster = load_roster(settings)
        if self._roster is not None:
            check_roster(self._roster, settings)
        elif settings.comm_args.backend != "LOCAL":
            is_open = settings.comm_args.authenticated_as is None
            self.notices.append(
                f"no roster: {'whoever connects may take part, and ' if is_open else ''}the server could "
                "pose as clients; secure_aggregation_args.roster lists who may (`lightsecagg roster add`)"
            )

    def _make_terms(self, entries: Sequence[Entry]) -> tuple[Terms, list[str]]:
        """What all clients must have alike, and what people should be told of it."""
        clients = self._settings.cohort_size
        field, notice = choose_field(self._settings, self._quantizer, clients)
        terms = make_terms(self._quantizer, entries, num_clients=clients, field=field)
        return terms, [] if notice is None else [notice]

    def clipped(self, delta: npt.NDArray[np.floating]) -> int:
        return self._quantizer.inspect(delta)[1]

    def seen_by_all(self, given: str) -> Self:
        application = hashlib.sha256(given.encode()).digest()
        bound = copy.copy(self)
        bound._terms = msgspec.structs.replace(self._terms, application=application)
        return bound

    def agreed(self) -> dict[str, str]:
        return {"secure_aggregation_args.prime_number": str(self._terms.order)}

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
        before: AnyClientRound | None,  # noqa: ARG002
        sequence: int,
        after_round: int,
        max_model_bytes: int,
        spans: Spans,
    ) -> AnyClientRound:
        return ClientRound(
            identity,
            rank,
            run,
            self._terms,
            floors=self._floors(max_model_bytes),
            roster=self._roster,
            sequence=sequence,
            after_round=after_round,
            spans=spans,
        )

    def _floors(self, max_model_bytes: int) -> Floors:
        return Floors(
            self._settings.min_clients,
            self._settings.min_privacy_threshold,
            self._settings.require_unique_survivor_set,
            max_model_bytes,
        )

    def update(self, delta: npt.NDArray[np.floating], num_samples: int) -> WeightedUpdate:
        # It is quantized as it goes under its mask; what cannot be is told here, where training failed.
        return WeightedUpdate(delta, self._quantizer.check_update(delta, num_samples))


class BufferedScheme(SecureScheme):
    """LightSecAgg with a buffer, asynchronously."""

    def _make_terms(self, entries: Sequence[Entry]) -> tuple[Terms, list[str]]:
        settings = self._settings
        buffering = plan_buffering(settings, plan(settings, settings.cohort_size))
        field, notice = choose_field(settings, self._quantizer, most_summands(buffering))
        strict = settings.secure_aggregation_args.strict_weights
        shown = reveals(buffering.weights, buffering.privacy_threshold, strict)
        terms = make_buffered_terms(self._quantizer, entries, buffering, field=field)
        return terms, [*([] if notice is None else [notice]), *shown]

    @property
    def _buffering(self) -> Buffering:
        assert self._terms.buffering is not None
        return self._terms.buffering

    def agreed(self) -> dict[str, str]:
        # What a client would miss only later: shares open among clients of the same numbers alone.
        numbers = {
            "targeted_number_active_clients": self._buffering.target_survivors,
            "privacy_guarantee": self._buffering.privacy_threshold,
            "buffer_size": self._buffering.buffer_size,
        }
        return super().agreed() | {
            f"secure_aggregation_args.{key}": str(value) for key, value in numbers.items()
        }

    def buffered_server(self, run: Run, spans: Spans) -> BufferMachine:
        settings = self._settings
        return BufferedServer(
            run,
            self._terms,
            min_clients=settings.min_clients,
            min_buffer_clients=_least_clients(settings, buffered_parameters(self._buffering)),
            strict_weights=settings.secure_aggregation_args.strict_weights,
            upload_slots=settings.secure_aggregation_args.upload_slots,
            spans=spans,
        )

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
        floors = self._floors(max_model_bytes)
        if isinstance(before, ClientUpload) and not before.holder.is_closed:
            holder = before.holder
        else:
            holder = Holder(
                identity,
                rank,
                run,
                self._terms,
                floors=floors,
                roster=self._roster,
                before=before.holder if isinstance(before, ClientUpload) else None,
                spans=spans,
            )
        return ClientUpload(
            holder,
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

    def _floors(self, max_model_bytes: int) -> Floors:
        return dataclasses.replace(
            super()._floors(max_model_bytes),
            min_buffer_clients=_least_clients(self._settings, buffered_parameters(self._buffering)),
            strict_weights=self._settings.secure_aggregation_args.strict_weights,
        )


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

    def buffered_server(self, run: Run, spans: Spans) -> BufferMachine:  # noqa: ARG002
        parameters = plan(self._settings, self._settings.cohort_size)
        buffering = plan_buffering(self._settings, parameters)
        rules = Rules(buffering.buffer_size, buffering.weights, _least_clients(self._settings, parameters))
        return PlainBufferedServer(
            buffering.capacity,
            rules,
            self._dimension,
            self._max_weight,
            min_clients=self._settings.min_clients,
            upload_slots=self._settings.secure_aggregation_args.upload_slots,
            spans=spans,
        )

    def client_round(
        self,
        identity: Identity,  # noqa: ARG002
        rank: int,  # noqa: ARG002
        run: Run,  # noqa: ARG002
        *,
        before: AnyClientRound | None,  # noqa: ARG002
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
    if not settings.secure:
        return PlainScheme(settings, layout)
    return (BufferedScheme if settings.asynchronous else SecureScheme)(settings, layout)
