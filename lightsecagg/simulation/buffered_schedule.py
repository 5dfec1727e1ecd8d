"""One seed, one asynchronous run under chaos, each of its lists held against an exact oracle."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

from lightsecagg import identity
from lightsecagg.codec import mask_codec, seeded
from lightsecagg.codec.lagrange import interpolation_matrix
from lightsecagg.field import Elements, PrimeField
from lightsecagg.identity import Identity, Roster
from lightsecagg.protocol.buffered.server import BufferedServer
from lightsecagg.protocol.messages import Entry
from lightsecagg.protocol.terms import MODE_ASYNC, Floors, Run, make_buffered_terms
from lightsecagg.protocol.wire import part_count, part_elements, part_length
from lightsecagg.simulation.buffered import Cast
from lightsecagg.simulation.buffered_chaos import BufferedChaos
from lightsecagg.simulation.buffered_plan import RunPlan, draw_run_plan
from lightsecagg.simulation.buffered_promises import Promises
from lightsecagg.simulation.schedule import QUANTIZERS, ScheduleError, Trace, short_parts


@dataclass(frozen=True)
class PlayedRun:
    """How a schedule ended.

    Attributes:
        plan: what was to go wrong.
        decoded: lists that were decoded.
        is_short: whether too few clients were left for the others.
        seen: how often what happened.
    """

    plan: RunPlan
    decoded: int
    is_short: bool
    seen: Counter[str]


def play_run(seed: int, trace: Trace | None = None) -> PlayedRun:
    """Play the schedule of ``seed``.

    Raises:
        ScheduleError: it shows a flaw.
    """
    try:
        with short_parts(), _matrices_kept():
            rng = random.Random(seed)
            plan = draw_run_plan(rng, tuple(QUANTIZERS))
            if trace is not None:
                trace(str(plan))
            chaos = stage(plan, rng, trace)
            chaos.play()
            return PlayedRun(plan, chaos.decoded, chaos.is_short, chaos.seen)
    except Exception as error:
        raise ScheduleError(seed, error, MODE_ASYNC) from error


@functools.cache
def _interpolation_matrix(field: PrimeField, known: tuple[int, ...], wanted: tuple[int, ...]) -> Elements:
    matrix = interpolation_matrix(field, known, wanted)
    matrix.flags.writeable = False
    return matrix


@contextmanager
def _matrices_kept() -> Iterator[None]:
    """Few small matrices are wanted again and again, and would take a sixth of the time."""

    def kept(field: PrimeField, known: Sequence[int], wanted: Sequence[int]) -> Elements:
        return _interpolation_matrix(field, tuple(known), tuple(wanted))

    with (
        mock.patch.object(seeded, "interpolation_matrix", kept),
        mock.patch.object(mask_codec, "interpolation_matrix", kept),
    ):
        yield


def stage(plan: RunPlan, rng: random.Random, trace: Trace | None = None) -> BufferedChaos:
    """The run of ``plan``, ready to be played; within ``short_parts``."""
    quantizer, field, buffering = QUANTIZERS[plan.order], PrimeField(plan.order), plan.buffering
    layout = [Entry("update", (plan.dimension,), "float64")]
    terms = make_buffered_terms(quantizer, layout, buffering, field=field)
    identities = {slot: Identity(rng.randbytes(32)) for slot in range(1, buffering.capacity + 1)}
    survivors, threshold = buffering.target_survivors, buffering.privacy_threshold
    cast = Cast(
        Run("simulated", rng.randbytes(32)),
        terms,
        identities,
        Floors(
            plan.min_clients,
            threshold,
            unique_survivor_set=2 * survivors > buffering.capacity + threshold,
            min_buffer_clients=plan.min_buffer_clients,
            strict_weights=plan.strict_weights,
        ),
        Roster({slot: one.public for slot, one in identities.items()}) if plan.has_roster else None,
        rng.randbytes,
        # What one client has checked, the others need not check again.
        functools.cache(identity.verify),
    )
    server = BufferedServer(
        cast.run,
        terms,
        min_clients=plan.min_clients,
        min_buffer_clients=plan.min_buffer_clients,
        strict_weights=plan.strict_weights,
        upload_slots=plan.slots,
    )
    columns = server.parameters.share_length(plan.dimension + 1)
    part = part_elements(field)
    answer_parts = [
        part_length(columns, part, index) * field.element_bytes for index in range(part_count(columns, part))
    ]
    promises = Promises(plan, quantizer, answer_parts)
    return BufferedChaos(cast, server, plan, quantizer, promises, rng, trace)
