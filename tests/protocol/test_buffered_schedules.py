"""Deterministic simulation of asynchronous runs (DESIGN §9): thousands, and proof that they can fail."""

import random
from collections import deque
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from lightsecagg.errors import AbortReason, Reason, RemoteProtocolError
from lightsecagg.protocol.attendance import Attendance
from lightsecagg.protocol.buffered import buffer, holder, server
from lightsecagg.protocol.buffered.buffer import Rules
from lightsecagg.protocol.buffered.holder import Holder
from lightsecagg.protocol.buffered.machine import BufferMachine
from lightsecagg.protocol.buffered.server import BufferedServer
from lightsecagg.protocol.messages import Buffering, ListCertificate
from lightsecagg.protocol.transitions import BufferStage
from lightsecagg.protocol.uploads import OutgoingUpload
from lightsecagg.simulation import soak
from lightsecagg.simulation.buffered_plan import Event, Mishap, RunPlan
from lightsecagg.simulation.buffered_schedule import play_run, stage
from lightsecagg.simulation.schedule import ScheduleError, short_parts

CHUNKS, CHUNK = 20, 100
OFTEN = (
    *("restart", "visit", "fail", "join", "repeated", "revoked", "spoilt"),
    *("mixed versions", "mixed weights", "twice in a list"),
    *("refused stale", "refused too_few_holders", "refused training_failed"),
    *("failed too_few_endorsements", "failed too_few_answers"),
)
LOSSES = ("vanish", "leave", "depart", "hang", "violate", "mangle")


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_list_is_exact_and_every_promise_holds_whatever_happens_to_the_clients(chunk: int) -> None:
    count, tally, failures = soak.play_batch(range(chunk * CHUNK, (chunk + 1) * CHUNK), "async")
    assert failures == []
    assert count == CHUNK
    # The schedules are worth something only if lists come and fail, and whatever is to happen does.
    assert tally["exact"] > 2 * CHUNK
    assert tally["short"] < CHUNK / 4
    assert {what for what in OFTEN if not tally[what]} == set()
    assert sum(tally[loss] for loss in LOSSES) > CHUNK / 10


def test_the_schedules_hold_every_mishap_and_refusal() -> None:
    _, tally, _ = soak.play_batch(range(150), "async")
    refusals = ("stale", "too_few_holders", "crowded_out", "training_failed")
    wanted = {*Mishap, *LOSSES, *(f"refused {reason}" for reason in refusals), "short"}
    assert {what for what in wanted if not tally[what]} == set()


def test_a_seed_replays_exactly() -> None:
    first, second = [], []
    assert play_run(11, first.append) == play_run(11, second.append)
    assert first == second
    assert len(first) > 100
    other = []
    play_run(12, other.append)
    assert other != first


# The simulation notices what is broken on purpose.


def is_noticed(flaw: str, most: int = 60) -> bool:
    """Whether one of the first schedules fails with these words."""
    return any(flaw in failure for seed in range(most) for failure in soak.play_batch([seed], "async")[2])


def test_it_notices_a_weight_that_is_not_that_of_the_staleness(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = Rules.weight
    monkeypatch.setattr(
        Rules, "weight", lambda self, upload, version: weight(self, upload, version) + (version > 0)
    )
    assert is_noticed("weighs upload")


def test_it_notices_an_update_that_is_summed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    add = server.add_weighted

    def doubled(total, part, chosen, weights, *others):
        add(total, part, [*chosen, chosen[0]], [*weights, weights[0]], *others)

    monkeypatch.setattr(server, "add_weighted", doubled)
    assert is_noticed("of the mean is") or is_noticed("sum_out_of_range")


def test_it_notices_a_sum_that_is_off_by_one_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    unmask = server.unmask

    def off(codec, quantizer, masked_sum, *others):
        masked_sum[0] = (int(masked_sum[0]) + 1) % codec.field.order
        return unmask(codec, quantizer, masked_sum, *others)

    monkeypatch.setattr(server, "unmask", off)
    assert is_noticed("a coordinate of the mean is")


def test_it_notices_a_list_with_an_update_of_a_failed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    freeze, abort = BufferMachine.freeze, BufferMachine.abort

    def keeping(self):
        kept = {upload.key: upload.parts for upload in self._buffer}
        actions = freeze(self)
        for upload in self._chosen:
            upload.parts = kept[upload.key]
        return actions

    def trying_again(self, *arguments, **others):
        again, self._chosen = self._chosen, []
        self._buffer += again
        return abort(self, *arguments, **others)

    monkeypatch.setattr(BufferMachine, "freeze", keeping)
    monkeypatch.setattr(BufferMachine, "abort", trying_again)
    assert is_noticed("names updates of earlier lists")


def test_it_notices_a_list_that_too_few_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_by(monkeypatch, quorum=0)
    assert is_noticed("is held by", 100)


def test_it_notices_a_list_of_too_few_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_by(monkeypatch, least_clients=1)
    assert is_noticed("too few distinct clients", 100)


def test_it_notices_a_weight_with_too_few_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_by(monkeypatch, least_a_weight=1)
    assert is_noticed("a weight with too few clients", 200)


def choose_by(monkeypatch: pytest.MonkeyPatch, **others: int) -> None:
    """Lists are chosen by other rules than the clients'."""

    def choose(self, present):
        return buffer.choose(self._buffer, self.version, replace(self.rules, **others), present)

    monkeypatch.setattr(BufferMachine, "_choose", choose)


def test_it_notices_a_holder_that_answers_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Holder._answer

    def again(self, certificate):
        chosen = self._stand.chosen
        actions = answer(self, certificate)
        self._stand.chosen = chosen
        return actions

    monkeypatch.setattr(Holder, "_answer", again)
    assert is_noticed("acted twice on a ListCertificate")


def test_it_notices_a_holder_that_answers_without_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    endorse = Holder._endorse

    def hasty(self, updates):
        return [*endorse(self, updates), *self._answer(ListCertificate(updates, b"", b"", b""))]

    monkeypatch.setattr(Holder, "_endorse", hasty)
    monkeypatch.setattr(holder, "check_list_certificate", lambda *_: None)
    assert is_noticed("of which there is no certificate")


def test_it_notices_shares_that_are_kept_once_they_are_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    forget = Holder._forget
    monkeypatch.setattr(Holder, "_forget", lambda self, masks: forget(self, masks[1:]))
    assert is_noticed("still holds")


def test_it_notices_a_server_that_keeps_what_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BufferedServer, "_spend", BufferMachine._spend)
    assert is_noticed("the server keeps")


def test_it_notices_a_server_that_waits_where_too_few_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = BufferedServer._advance

    def waiting(self):
        self.abort = lambda *_, **__: []
        try:
            return advance(self)
        finally:
            del self.abort

    monkeypatch.setattr(BufferedServer, "_advance", waiting)
    assert is_noticed("can finish it", 100)


def test_it_notices_a_list_that_fails_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    vacate = BufferedServer._vacate

    def timid(self, number):
        return [*vacate(self, number), *self.abort(AbortReason.TOO_FEW_ANSWERS)]

    monkeypatch.setattr(BufferedServer, "_vacate", timid)
    assert is_noticed("could finish it")


def test_it_notices_a_buffer_that_stays_full_of_what_makes_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BufferMachine, "_relieve", lambda self, **_: [])
    assert is_noticed("makes no list, though", 300)


def test_it_notices_a_client_that_stays_barred_for_its_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BufferedServer, "_pay", lambda self, number: None)
    monkeypatch.setattr(BufferedServer, "_forgive_if_few", lambda self: None)
    monkeypatch.setattr(BufferedServer, "stalled", BufferMachine.stalled)
    assert is_noticed("makes no list, though", 300)


def test_it_notices_a_server_that_drops_who_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    present = BufferMachine._is_present

    def strict(found, now, last):
        if not present(found, now, last):
            raise RemoteProtocolError(Reason.PROTOCOL_VIOLATION, "late")
        return True

    monkeypatch.setattr(BufferMachine, "_is_present", staticmethod(strict))
    assert is_noticed("was dropped: protocol_violation")


def test_it_notices_a_server_that_lets_nonsense_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    receive = Attendance.receive

    def lenient(self, number, message):
        self.lose = lambda *_: []
        try:
            return receive(self, number, message)
        finally:
            del self.lose

    monkeypatch.setattr(Attendance, "receive", lenient)
    assert is_noticed("was not dropped", 100)


def test_it_notices_an_upload_that_changes_between_two_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = OutgoingUpload.parts

    def fickle(self, grant):
        if self._concealed is not None:
            self._concealed[0] ^= 1
        return parts(self, grant)

    monkeypatch.setattr(OutgoingUpload, "parts", fickle)
    assert is_noticed("uploaded two different vectors")


def test_it_notices_a_server_that_starts_clients_on_an_old_version(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = BufferMachine.publish

    def slow(self, model):
        before = self.version
        actions = publish(self, model)
        self.version = max(before, 0)
        return actions

    monkeypatch.setattr(BufferMachine, "publish", slow)
    assert is_noticed("not the newest")


# The command.


def test_the_command_prints_failing_seeds_and_replays_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soak.main(["--mode", "async", "--seed", "3"]) == 0
    assert "all promises held" in capsys.readouterr().out
    monkeypatch.setattr(BufferedServer, "_spend", BufferMachine._spend)
    with pytest.raises(ScheduleError, match=r"seed 3: .*--mode async --seed 3"):
        play_run(3)
    assert soak.main(["--mode", "async", "--seed", "3"]) == 1
    assert "FAILED seed 3" in capsys.readouterr().out


def test_the_command_spreads_schedules_over_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--mode", "async", "--schedules", "51", "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert "51/51 schedules, 0 failed" in printed
    assert "exact" in printed


# Memory.

PLAN = RunPlan(
    Buffering(4, 3, 1, 3, (4, 2, 1)),
    order=2**24 - 3,
    dimension=4,
    slots=2,
    min_clients=3,
    min_buffer_clients=3,
    strict_weights=False,
    has_roster=True,
    lists=1000,
    present=frozenset({1, 2, 3, 4}),
)


HAPPENINGS = (Mishap.RESTART, Mishap.VISIT, Mishap.FAIL, Mishap.RETURN, Mishap.LEAVE)


def eventful(lists: int) -> RunPlan:
    """A long run in which something befalls somebody at every third list; whoever left comes back soon."""
    rng = random.Random(5)
    events = []
    for number in range(2 * lists):
        events += [Event(slot, Mishap.JOIN, number, BufferStage.COLLECTING, 9) for slot in range(1, 5)]
        if number % 3 == 0:
            stage_ = rng.choice(tuple(BufferStage))
            events.append(
                Event(rng.randint(1, 4), rng.choice(HAPPENINGS), number, stage_, rng.randrange(50), 30)
            )
    return replace(PLAN, lists=lists, events=tuple(events), patient=False, repeats=lists)


def held(root: object) -> int:
    """How much hangs on an object: elements of its containers, bytes of its data, all the way down."""
    seen: set[int] = set()
    rest: deque[object] = deque([root])
    total = 0
    while rest:
        one = rest.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        match one:
            case bytes() | bytearray() | memoryview() | np.ndarray():
                total += 1 + memoryview(one).nbytes // 64
            case dict():
                total += len(one)
                rest.extend(one)
                rest.extend(one.values())
            case list() | tuple() | set() | frozenset() | deque():
                total += len(one)
                rest.extend(one)
            case int() | float() | str() | None | type():
                pass
            case _ if not callable(one):
                slots = [name for base in type(one).__mro__ for name in getattr(base, "__slots__", ())]
                names = (*slots, *getattr(one, "__struct_fields__", ()))
                rest.extend(getattr(one, name) for name in names if hasattr(one, name))
                rest.extend(getattr(one, "__dict__", {}).values())
    return total


def weigh(lists: int) -> list[int]:
    """What server and clients hold after each list of an eventful run."""
    weights = []
    with short_parts():
        chaos = stage(eventful(lists), random.Random(1))
        take = chaos.take_result

        def weighed(result):
            take(result)
            weights.append(held([chaos.server, chaos.processes]))

        chaos.take_result = weighed
        chaos.play()
    assert not chaos.is_short
    failed = sum(count for what, count in chaos.seen.items() if what.startswith("failed"))
    assert min(failed, *(chaos.seen[mishap] for mishap in HAPPENINGS)) > lists / 50
    return weights


def growth(weights: list[int]) -> float:
    """What is held in the last fifth of the lists, in proportion to the second fifth."""
    fifth = len(weights) // 5
    return fmean(weights[-fifth:]) / fmean(weights[fifth : 2 * fifth])


def test_what_server_and_clients_hold_does_not_grow_over_a_thousand_lists() -> None:
    weights = weigh(1000)
    assert len(weights) == 1000
    assert growth(weights) < 1.05
    assert max(weights) < 2 * fmean(weights)


def test_a_server_that_keeps_its_tallies_is_seen_to_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BufferedServer, "_spend", BufferMachine._spend)
    monkeypatch.setattr("lightsecagg.simulation.buffered_promises.Promises.check_rest", lambda *_: None)
    assert growth(weigh(200)) > 1.5
