"""Which settings exclude each other: comparisons between keys, each with the key to change.

The planner and the choice of the field are the core's; here stand only checks that need no arithmetic of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightsecagg.errors import ConfigError

if TYPE_CHECKING:
    from lightsecagg.settings.schema import Settings

_SECURE = "secure_aggregation_args"
_MAX_SLOTS = 1024


@dataclass(frozen=True)
class Problem:
    """One wrong setting: its key path, what was wanted, and what was found (already fit to print)."""

    key: str
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"{self.key}: wanted {self.wanted}, found {self.found}"


class ConflictError(ConfigError):
    """Settings that exclude each other.

    Attributes:
        problems: what is wrong, one entry a key.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def conflicts(settings: Settings) -> tuple[Problem, ...]:
    """Everything in ``settings`` that contradicts itself; empty for a configuration that fits together."""
    found = (*_cohort(settings), *_threshold(settings), *_floors(settings), *_timing(settings))
    return (*found, *_buffer(settings)) if settings.asynchronous else found


def _cohort(settings: Settings) -> Iterator[Problem]:
    workers, train = settings.device_args.worker_num, settings.train_args
    per_round, cohort = "train_args.client_num_per_round", settings.cohort_size
    if settings.asynchronous and cohort != workers:
        wanted = f"nothing, or device_args.worker_num ({workers}): in async mode no client waits for a round"
        yield Problem(per_round, wanted, str(cohort))
    elif cohort > workers:
        yield Problem(per_round, f"at most device_args.worker_num ({workers})", str(cohort))
    elif settings.secure and cohort < 2:
        key = "device_args.worker_num" if train.client_num_per_round is None else per_round
        yield Problem(
            key, "at least 2 for secure aggregation (the sum of one client is its update)", str(cohort)
        )
    if settings.num_silos < workers:
        yield Problem(
            "train_args.client_num_in_total",
            f"at least device_args.worker_num ({workers}), a data silo for each client",
            str(settings.num_silos),
        )


def _threshold(settings: Settings) -> Iterator[Problem]:
    secure, cohort = settings.secure_aggregation_args, settings.cohort_size
    target, threshold = secure.targeted_number_active_clients, secure.privacy_guarantee
    size = f"the clients of a round ({cohort})"
    if target is not None and target > cohort:
        yield Problem(f"{_SECURE}.targeted_number_active_clients", f"at most {size}", str(target))
    if threshold is None:
        return
    if target is None and threshold >= cohort:
        yield Problem(f"{_SECURE}.privacy_guarantee", f"less than {size}", str(threshold))
    elif target is not None and threshold >= target:
        wanted = f"less than {_SECURE}.targeted_number_active_clients ({target})"
        yield Problem(f"{_SECURE}.privacy_guarantee", wanted, str(threshold))
    elif target is not None and settings.require_unique_survivor_set and 2 * target <= cohort + threshold:
        yield Problem(
            f"{_SECURE}.require_unique_survivor_set",
            f"false, or targeted_number_active_clients of at least {(cohort + threshold) // 2 + 1} "
            f"(2U > N + T with N = {cohort}, T = {threshold})",
            f"true with targeted_number_active_clients {target}",
        )


def _floors(settings: Settings) -> Iterator[Problem]:
    secure, cohort = settings.secure_aggregation_args, settings.cohort_size
    size = f"the clients of a round ({cohort})"
    if settings.min_clients > cohort:
        yield Problem(f"{_SECURE}.min_clients", f"at most {size}", str(settings.min_clients))
    threshold, floor = secure.privacy_guarantee, settings.min_privacy_threshold
    if floor >= cohort and secure.min_privacy_threshold is not None:
        yield Problem(f"{_SECURE}.min_privacy_threshold", f"less than {size}", str(floor))
    elif settings.secure and threshold is not None and floor > threshold:
        # Every client would leave every round: better said here than at the first RoundStart.
        found = str(floor) if secure.min_privacy_threshold is not None else f"{floor} (its default)"
        wanted = f"at most {_SECURE}.privacy_guarantee ({threshold})"
        yield Problem(f"{_SECURE}.min_privacy_threshold", wanted, found)
    yield from _joined(settings)


def _joined(settings: Settings) -> Iterator[Problem]:
    secure, joined = settings.secure_aggregation_args, settings.min_joined
    if secure.min_joined is None:
        return
    target = secure.targeted_number_active_clients
    if joined > settings.device_args.worker_num:
        wanted = f"at most device_args.worker_num ({settings.device_args.worker_num})"
    elif settings.secure and joined < settings.min_clients:
        wanted = f"at least {_SECURE}.min_clients ({settings.min_clients})"
    elif settings.secure and joined < 2:
        wanted = "at least 2 for secure aggregation"
    elif target is not None and joined < target:
        wanted = f"at least {_SECURE}.targeted_number_active_clients ({target})"
    else:
        return
    yield Problem(f"{_SECURE}.min_joined", wanted, str(joined))


def _buffer(settings: Settings) -> Iterator[Problem]:
    secure, workers = settings.secure_aggregation_args, settings.device_args.worker_num
    size, clients, threshold = secure.buffer_size, secure.min_buffer_clients, secure.privacy_guarantee
    if workers > _MAX_SLOTS:
        wanted = f"at most {_MAX_SLOTS} in async mode (each client has a slot for the whole run)"
        yield Problem("device_args.worker_num", wanted, str(workers))
    key = f"{_SECURE}.min_buffer_clients"
    if clients is not None and clients > workers:
        yield Problem(key, f"at most device_args.worker_num ({workers})", str(clients))
    if clients is not None and threshold is not None and clients < threshold + 2:
        wanted = f"at least {_SECURE}.privacy_guarantee + 2 ({threshold + 2})"
        yield Problem(key, f"{wanted}: T colluders must leave two updates unknown", str(clients))
    elif size is not None and clients is not None and size < clients:
        yield Problem(f"{_SECURE}.buffer_size", f"at least {key} ({clients})", str(size))
    elif size is not None and threshold is not None and size < threshold + 2:
        wanted = f"at least {_SECURE}.privacy_guarantee + 2 ({threshold + 2})"
        yield Problem(f"{_SECURE}.buffer_size", wanted, str(size))


def _timing(settings: Settings) -> Iterator[Problem]:
    comm = settings.comm_args
    if comm.heartbeat_timeout <= comm.heartbeat_interval:
        yield Problem(
            "comm_args.heartbeat_timeout",
            f"more than comm_args.heartbeat_interval ({comm.heartbeat_interval:g})",
            f"{comm.heartbeat_timeout:g}",
        )
