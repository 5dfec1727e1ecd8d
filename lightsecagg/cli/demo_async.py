"""``lightsecagg demo-async``: clients of very different speeds, asynchronously and in rounds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from rich.console import Console

from lightsecagg.cli.cast import Cast, play
from lightsecagg.cli.common import EXIT_STOPPED, fail, read_settings, starting
from lightsecagg.cli.courses import Course, picture, table, target_of
from lightsecagg.cli.demo import demo_options
from lightsecagg.errors import ConfigError, RunStopped
from lightsecagg.managers.checkpoint import RunFolder
from lightsecagg.managers.scheme import plan
from lightsecagg.managers.schemes import plan_buffering
from lightsecagg.settings import Settings
from lightsecagg.tracking.events import ClientJoined, ClientLost, RoundCompleted
from lightsecagg.tracking.wording import duration, percent

_LATE, _LATE_VERSION = 2, 3
_KILLED, _KILLED_UPDATE = 5, 5
_FASTEST, _SPREAD = 0.25, 10  # seconds of client 1's training; how many times as long the last one's takes
_VERSIONS_A_ROUND = 4
_TOLERANCE = 0.05  # accuracy: five points

_OWN_SETTINGS = (  # those of the command line come after them
    "device_args.worker_num=6",
    "model_args.trainer=numpy",  # seven processes start in a second
    "train_args.comm_round=10",
    "validation_args.frequency_of_the_test=1",
    "secure_aggregation_args.dropout_rate=0.4",
    "secure_aggregation_args.buffer_size=4",
    "secure_aggregation_args.staleness=polynomial(0.5)",
)


@click.command("demo-async")
@demo_options
def demo_async(config: Path, runs: Path, overrides: tuple[str, ...]) -> None:
    """Clients of which one is ten times as fast as another, one late, one killed; then the same in rounds."""
    with starting():
        chosen = [*_OWN_SETTINGS, *overrides, "comm_args.backend=GRPC"]
        in_rounds = [*chosen, "secure_aggregation_args.mode=sync", "secure_aggregation_args.min_joined="]
        settings, _ = read_settings(config, in_rounds)
        at_own_pace = [*chosen, *_asynchronous(settings)]
        _check(settings, read_settings(config, at_own_pace)[0])
        try:
            _show(Console(highlight=False), config, runs, settings, at_own_pace, in_rounds)
        except RunStopped as error:
            fail(error, EXIT_STOPPED)


def _asynchronous(settings: Settings) -> tuple[str, ...]:
    """What makes another run of a synchronous one: more versions than that has rounds, from fewer updates."""
    return (
        "secure_aggregation_args.mode=async",
        f"secure_aggregation_args.min_joined={settings.device_args.worker_num - 1}",
        f"train_args.comm_round={_VERSIONS_A_ROUND * settings.train_args.comm_round}",
    )


def _check(in_rounds: Settings, at_own_pace: Settings) -> None:
    """Whether such runs can show what they are to show.

    Raises:
        ConfigError: they cannot.
    """
    numbers, rounds = plan(in_rounds, in_rounds.cohort_size), in_rounds.train_args.comm_round
    plan_buffering(at_own_pace, numbers)
    if in_rounds.device_args.worker_num < _KILLED or numbers.dropout_tolerance < 2:
        raise ConfigError(
            "demo-async: one client comes late and one is killed, so wanted N − U of at least 2, found "
            f"N = {numbers.num_clients} and U = {numbers.target_survivors}; raise device_args.worker_num or "
            "secure_aggregation_args.dropout_rate"
        )
    if rounds <= _KILLED_UPDATE:
        raise ConfigError(
            f"train_args.comm_round: wanted a round after number {_KILLED_UPDATE}, in which client "
            f"{_KILLED} is killed, found {rounds}"
        )


def _show(
    console: Console,
    config: Path,
    runs: Path,
    settings: Settings,
    at_own_pace: Sequence[str],
    in_rounds: Sequence[str],
) -> None:
    clients, stamp = settings.device_args.worker_num, time.strftime("%m%d-%H%M%S")
    paces = {rank: _FASTEST * _SPREAD ** ((rank - 1) / (clients - 1)) for rank in range(1, clients + 1)}
    halt_at = f"{_KILLED_UPDATE}:send {'MaskedUpdate' if settings.secure else 'PlainUpdate'}"
    courses = {}
    for name, overrides, late in (
        ("asynchronous", at_own_pace, {_LATE: _LATE_VERSION}),
        ("synchronous", in_rounds, {}),
    ):
        console.rule(name)
        console.print(f"Clients 1 to {clients} train for {_in_words(paces.values())} s each time.")
        if late:
            console.print(f"Client {_LATE} starts once version {_LATE_VERSION} is made.")
        console.print(f"Client {_KILLED} is killed (SIGKILL) as it sends its update {_KILLED_UPDATE}.\n")
        folder = RunFolder(runs, f"demo-{stamp}-{name}", settings)
        courses[name] = Course.read(
            play(config, folder, overrides, Cast(clients, _KILLED, halt_at, paces, late))
        )
    console.print(table("The same clients at their own pace and in rounds", courses), "")
    console.print(picture(courses), end="\n\n")
    console.print(verdict(courses["asynchronous"], courses["synchronous"]))


def _in_words(seconds: Iterable[float]) -> str:
    *others, last = (f"{pace:.2g}" for pace in seconds)
    return f"{', '.join(others)} and {last}"


def verdict(asynchronous: Course, synchronous: Course) -> str:
    """What the asynchronous run has shown.

    Raises:
        RunStopped: it did not do what it should.
    """
    joined = _versions_before(asynchronous, ClientJoined, _LATE)
    used = sum(version.survivors.count(_LATE) for version in asynchronous.made[joined:])
    if joined < _LATE_VERSION or not used:
        raise RunStopped(
            f"client {_LATE} joined after version {joined} and {used} of its updates were used; on a busy "
            "machine it may come too late: raise train_args.comm_round"
        )
    lost = _versions_before(asynchronous, ClientLost, _KILLED)
    after = len(asynchronous.made) - lost
    if not after:
        raise RunStopped(f"no version was made after client {_KILLED} was killed")
    if asynchronous.final < synchronous.final - _TOLERANCE:
        raise RunStopped(
            f"the asynchronous run ends at {percent(asynchronous.final)}, more than "
            f"{100 * _TOLERANCE:.0f} points below the synchronous one at {percent(synchronous.final)}"
        )
    target = target_of([asynchronous, synchronous])
    first, second = asynchronous.seconds_to(target), synchronous.seconds_to(target)
    if first >= second:
        raise RunStopped(
            f"the asynchronous run needed {duration(first)} to {100 * target:.0f} %, the synchronous one "
            f"only {duration(second)}"
        )
    return (
        f"Client {_LATE} joined after version {joined}, and {used} of its updates were used.\n"
        f"Client {_KILLED} was killed after version {lost}, and {after} more were made.\n"
        f"To {100 * target:.0f} % the rounds took {second / first:.1f} times as long."
    )


def _versions_before(course: Course, kind: type[ClientJoined | ClientLost], rank: int) -> int:
    """How many versions there were when this last happened to client ``rank``.

    Raises:
        RunStopped: it never did.
    """
    places = [n for n, event in enumerate(course.events) if isinstance(event, kind) and event.rank == rank]
    if not places:
        raise RunStopped(f"wanted {kind.__name__} of client {rank} in the server's log, found none")
    return sum(isinstance(event, RoundCompleted) for event in course.events[: places[-1]])
