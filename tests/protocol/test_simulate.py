"""`lightsecagg simulate`: real rounds with many clients, every sum exact, and an honest table of costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from lightsecagg.cli.main import main
from lightsecagg.errors import AbortReason, ParameterError, RoundAborted
from lightsecagg.identity import Identity, verify
from lightsecagg.parameters import Parameters
from lightsecagg.protocol import dealing, masking
from lightsecagg.protocol.holding import Holding
from lightsecagg.protocol.server import ServerRound
from lightsecagg.protocol.uploads import UploadDesk
from lightsecagg.sealing import RoundKey
from lightsecagg.simulation import cost, experiment
from lightsecagg.simulation.cost import PHASES, SharedChecks
from lightsecagg.simulation.experiment import Experiment, InexactSumError, PhaseCost, Report, simulate
from lightsecagg.simulation.losses import MOMENTS, Moment
from tests.protocol.scene import Scene

HEADER = 24  # bytes of a message besides its contents, at most: numbers and lengths


class Clock:
    """CPU seconds as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def slow(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, seconds: float) -> None:
        """Let every call of ``owner.name`` take so long."""
        original = getattr(owner, name)

        def slowed(*args: object, **kwargs: object) -> object:
            self.now += seconds
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, slowed)


def by_name(report: Report) -> dict[str, PhaseCost]:
    return {phase.name: phase for phase in report.costs}


# The suite's own large round.


def test_hundred_clients_of_whom_thirty_vanish_give_the_exact_sum_and_a_sane_table(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    words = ["simulate", "--clients", "100", "--dimension", "10000", "--dropout", "0.3", "--json", str(path)]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""  # nothing is drawn where nobody looks
    assert "Its sum is exact: that of the updates of the 82 clients that are in it." in done.stdout
    assert "N + U = 170 signatures" in done.stdout

    found = json.loads(path.read_text())
    assert found["experiment"]["parameters"] == {
        "num_clients": 100,
        "target_survivors": 70,
        "privacy_threshold": 30,
    }
    assert 0 < found["seconds"] < 60
    assert 2**20 < found["peak_memory_bytes"] < 2**31
    report = found["report"]
    assert report["survivors"] == [100 - 18]  # 30 vanish, six at each moment, of which three come before S
    n, u, t, d, width = 100, 70, 30, 10_000, 4
    m = -(-(d + 1) // (u - t))
    phases = {phase.pop("name"): phase for phase in report["costs"]}
    assert list(phases) == ["opening", "sharing", "upload", "endorsement", "recovery", "total"]

    def check(phase: str, way: str, contents: int, messages: int) -> None:
        value = phases[phase]["client"][way]
        assert contents <= value <= contents + HEADER * messages, (phase, way)

    check("opening", "sent", 32 + 64, 1)
    check("opening", "received", n * (32 + 32 + 64), n)
    check("sharing", "sent", 48 * (u - 1) + (n - u) * (m * width + 16) + n / 8, 1 + (n - u) + 1)
    check("upload", "sent", (d + 1) * width, 2)
    check("endorsement", "sent", 64, 1)
    check("endorsement", "received", n / 8, 1)
    check("recovery", "sent", m * width, 1)
    check("recovery", "received", 64 * u + 2 * n / 8, 2)
    for phase, costs in phases.items():
        client, most, server = costs["client"], costs["most"], costs["server"]
        for way in ("sent", "received", "seconds"):
            assert 0 < client[way] <= most[way], (phase, way)
        # What clients send, the server receives, from those that vanish later too; and the other way round.
        assert (n - 30) * client["sent"] <= server["received"] <= n * most["sent"], phase
        assert (n - 30) * client["received"] <= server["sent"] <= n * most["received"], phase
        assert server["seconds"] > 0
    for party in ("client", "server"):
        for way in ("sent", "received", "seconds"):
            parts = sum(phases[phase][party][way] for phase in PHASES)
            assert phases["total"][party][way] == pytest.approx(parts)


# Who vanishes, and when.


@pytest.mark.parametrize("moment", MOMENTS)
def test_every_moment_may_be_that_of_all_who_vanish(moment: Moment) -> None:
    report = simulate(Experiment(Parameters(10, 7, 3), 50, 2, 3, (moment,)), Clock())
    assert report.survivors == ((10, 10) if moment in ("endorse", "recovery") else (7, 7))


def test_the_seed_says_who_vanishes_and_each_round_draws_anew() -> None:
    some = Experiment(Parameters(100, 70, 30), 10, losses=30, seed=1)
    again = Experiment(Parameters(100, 70, 30), 99, losses=30, seed=1)
    other = Experiment(Parameters(100, 70, 30), 10, losses=30, seed=2)
    assert len(some.moments_of(1)) == 30
    assert some.moments_of(1) == again.moments_of(1)
    assert some.moments_of(1) != some.moments_of(2)
    assert some.moments_of(1) != other.moments_of(1)
    assert {list(some.moments_of(1).values()).count(moment) for moment in MOMENTS} == {6}


def test_more_losses_than_a_round_tolerates_are_refused() -> None:
    Experiment(Parameters(10, 7, 3), 50, losses=3)
    with pytest.raises(ParameterError, match="U = 7 tolerates 3"):
        Experiment(Parameters(10, 7, 3), 50, losses=4)


# The costs.


def test_time_is_charged_to_the_party_and_the_phase_that_spend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    n, u = 6, 4
    clock = Clock()
    clock.slow(monkeypatch, RoundKey, "agree", 1)
    clock.slow(monkeypatch, dealing, "seal", 10_000)
    clock.slow(monkeypatch, Holding, "take_seed", 10)
    clock.slow(monkeypatch, Holding, "take_part", 100)
    clock.slow(monkeypatch, Holding, "answer", 1000)
    clock.slow(monkeypatch, UploadDesk, "take", 7)
    clock.slow(monkeypatch, ServerRound, "_take_signature", 11)
    clock.slow(monkeypatch, ServerRound, "finish", 13)
    costs = by_name(simulate(Experiment(Parameters(n, u, 1), 20, 3), clock))
    assert {name: costs[name].client.seconds for name in PHASES} == {
        "opening": n - 1,
        "sharing": 10_000 * (n - 1) + 10 * (u - 1) + 100 * (n - u),
        "upload": 0,
        "endorsement": 0,
        "recovery": 1000,
    }
    assert costs["total"].most == costs["total"].client  # nobody differs
    assert {name: costs[name].server.seconds for name in PHASES} == {
        "opening": 0,
        "sharing": 0,
        "upload": 7 * n,
        "endorsement": 11 * u,  # the certificate needs no more
        "recovery": 13,
    }


def test_a_client_that_stands_out_shows_in_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    take_seed = Holding.take_seed

    def slow_for_one(self: Holding, sender: int, sealed: memoryview) -> None:
        clock.now += 5 if self._own == 2 else 1
        take_seed(self, sender, sealed)

    monkeypatch.setattr(Holding, "take_seed", slow_for_one)
    costs = by_name(simulate(Experiment(Parameters(5, 5, 1), 20), clock))
    assert costs["sharing"].most.seconds == 5 * 4
    assert costs["sharing"].client.seconds == (5 * 4 + 4 * 4) / 5


def test_those_that_vanish_do_not_lower_what_a_client_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    def cost_of(losses: int) -> PhaseCost:
        clock = Clock()
        with monkeypatch.context() as patches:
            clock.slow(patches, Holding, "answer", 1)
            return by_name(simulate(Experiment(Parameters(10, 7, 3), 50, 2, losses, ("recovery",)), clock))[
                "total"
            ]

    without, beside = cost_of(0), cost_of(3)
    assert without.client == without.most
    assert without.client.seconds == beside.client.seconds == 1  # all ten answer, though seven suffice
    assert without.client.sent == beside.client.sent


def test_the_watch_hears_of_every_client_in_every_phase_with_work_in_it() -> None:
    heard: list[tuple[int, str]] = []
    simulate(
        Experiment(Parameters(5, 4, 1), 20, 2), Clock(), lambda number, phase: heard.append((number, phase))
    )
    phases = ["opening"] * 5 + ["sharing"] * 5 + ["upload"] * 5 + ["recovery"] * 5
    assert heard == [(number, phase) for number in (1, 2) for phase in phases]


# Signatures are checked once for all, and checked all the same.


def test_a_client_checks_as_many_signatures_as_the_report_says() -> None:
    asked = []

    def counted(public: bytes, signature: bytes, label: str, *fields: bytes | int | str) -> bool:
        asked.append(public)
        return verify(public, signature, label, *fields)

    scene = Scene(6, 4, 1)
    scene.clients[3]._verifier = counted
    scene.finish()
    assert len(asked) == simulate(Experiment(Parameters(6, 4, 1), 9), Clock()).checks == 6 + 4


def test_each_signature_is_checked_once_for_all_clients_and_at_nobodys_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n, u, rounds = 6, 4, 3
    clock = Clock()
    clock.slow(monkeypatch, cost, "verify", 0.5)
    before = clock.now
    report = simulate(Experiment(Parameters(n, u, 1), 20, rounds), clock)
    assert clock.now - before == 0.5 * rounds * (n + u)
    assert report.check_seconds == 0.5
    assert by_name(report)["total"].client.seconds == by_name(report)["total"].server.seconds == 0


def test_what_was_checked_vouches_for_nothing_else() -> None:
    checks = SharedChecks(Clock())
    mine, other = Identity.generate(), Identity.generate()
    signature = mine.sign("label", b"text", 7)
    for _ in range(2):
        assert checks.verify(mine.public, signature, "label", b"text", 7)
        for wrong in (
            (other.public, signature, "label", b"text", 7),
            (mine.public, other.sign("label", b"text", 7), "label", b"text", 7),
            (mine.public, bytes([signature[0] ^ 1]) + signature[1:], "label", b"text", 7),
            (mine.public, signature, "another", b"text", 7),
            (mine.public, signature, "label", b"text", 8),
            (mine.public, signature, "label", b"text"),
            (mine.public, signature, "label", "text", 7),
        ):
            assert not checks.verify(*wrong)
    assert checks.made == 8


def test_a_round_key_that_is_not_signed_is_refused_in_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    make_member = masking.make_member

    def unsigned_in_round_two(identity, run, rank, sequence, key):
        signer = Identity.generate() if (rank, sequence) == (3, 2) else identity
        member = make_member(signer, run, rank, sequence, key)
        return type(member)(rank, identity.public, sequence, key, member.signature)

    monkeypatch.setattr(masking, "make_member", unsigned_in_round_two)
    simulate(Experiment(Parameters(6, 4, 1), 20, 1), Clock())
    with pytest.raises(RoundAborted, match="in round 2") as caught:
        simulate(Experiment(Parameters(6, 4, 1), 20, 2), Clock())
    assert caught.value.reason is AbortReason.TOO_FEW_SHARED  # everybody has left


def test_a_forged_certificate_is_refused_in_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    certify = ServerRound._certify

    def forged(self: ServerRound):
        self._signatures[min(self._signatures)] = bytes(64)
        return certify(self)

    monkeypatch.setattr(ServerRound, "_certify", forged)
    with pytest.raises(RoundAborted) as caught:
        simulate(Experiment(Parameters(6, 4, 1), 20), Clock())
    assert caught.value.reason is AbortReason.TOO_FEW_ANSWERS


# Failures.


def off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = ServerRound.finish
    is_off = []

    def wrong(self: ServerRound):
        result = finish(self)
        if self.parameters.num_clients > 3 and not is_off:  # the first rounds of three are no part of it
            result.mean[1] += 1 / 2**16 * 1000 / result.total_weight
            is_off.append(True)
        return result

    monkeypatch.setattr(ServerRound, "finish", wrong)


def half_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = experiment.QUANTIZER
    monkeypatch.setattr(
        type(quantizer), "dequantize", lambda self, field, total, survivors: (total[:-1] * 1.0, 12)
    )


@pytest.mark.parametrize("break_it", [off_by_one, half_a_weight])
def test_a_sum_that_is_not_exact_is_noticed(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    break_it(monkeypatch)
    with pytest.raises(InexactSumError, match="round 1: "):
        simulate(Experiment(Parameters(6, 4, 1), 20, losses=2), Clock())


def test_the_command_says_that_a_sum_is_not_exact_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    off_by_one(monkeypatch)
    done = CliRunner().invoke(main, ["simulate", "--clients", "6", "--dimension", "20"])
    assert done.exit_code == 1
    assert done.stderr == (
        "lightsecagg: round 1: 1 of 21 coordinates of the decoded sum are not the sum of the survivors' "
        "updates\n"
    )
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--clients 1", "1 is not in the range 2<=x<=1024"),
        ("--clients 1025", "1025 is not in the range 2<=x<=1024"),
        ("--clients many", "'many' is not a valid integer"),
        ("--dimension 0", "0 is not in the range x>=1"),
        ("--rounds 0", "0 is not in the range x>=1"),
        ("--dropout 1", "1.0 is not in the range 0<=x<1"),
        ("--dropout -0.1", "-0.1 is not in the range 0<=x<1"),
        ("--moment lunch", "'lunch' is not one of 'sharing', 'training'"),
        ("--clients 10 --collusion 0.95", "the largest collusion rate that does is 8/10"),
        ("--clients 10 --target-survivors 5 --privacy-threshold 7", "wanted N ≥ U > T ≥ 0"),
        ("--clients 10 --target-survivors 8", "3 of 10 clients are to vanish in each round, and U = 8"),
        ("--clients 10 --dropout 0.5", "5 of 10 clients are to vanish in each round, and U = 7"),
        ("--json /nowhere/found.json", "--json: /nowhere is no folder"),
    ],
)
def test_wrong_words_are_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.setattr("lightsecagg.cli.simulate.run_experiment", None)
    done = CliRunner().invoke(main, ["simulate", *words.split()])
    assert done.exit_code == 2, done.output
    assert message in done.stderr
