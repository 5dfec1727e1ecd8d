"""``python -m benchmarks.paper``: its cost model by hand, its bytes by real ones, and a whole toy run."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.baselines.graph import GraphPlan
from benchmarks.baselines.pairwise import Client
from benchmarks.paper.__main__ import main
from benchmarks.paper.comparison import Measured
from benchmarks.paper.costs import (
    Network,
    Traffic,
    Work,
    lightsecagg_traffic,
    pairwise_traffic,
    phases,
)
from benchmarks.paper.settings import paper_settings
from benchmarks.paper.tables import Comparison, losses
from lightsecagg.codec import MaskCodec
from lightsecagg.field import PrimeField
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.dealing import Dealing
from lightsecagg.protocol.holding import Holding
from lightsecagg.protocol.messages import MaskName
from lightsecagg.randomness import system_entropy
from lightsecagg.sealing import RoundKey

SCHEMES = ["LightSecAgg", "SecAgg", "SecAgg+", "SecAgg+ N/10"]
FREE = Network(10**15, 10**18)


def test_transfer_takes_the_slower_of_the_users_line_and_the_servers() -> None:
    network = Network(user_bandwidth=100, server_bandwidth=1000)
    assert network.seconds(5, 50) == 4.0  # 400 bits at 100 a second; the server has 2,000 at 1,000
    assert network.seconds(20, 50) == 8.0  # the server has 8,000 bits
    assert network.seconds(20, 10, 50) == 8.0  # what comes in counts as what goes out, both at once


def test_phases_add_work_to_transfers_and_training_hides_the_offline_phase_alone() -> None:
    parameters = Parameters(4, 3, 1)
    work = Work(1, 2, 4, 8, 16)
    traffic = Traffic(offline_up=10, offline_down=20, upload=30, recovery_up=5, recovery_down=1)
    found = phases(work, traffic, Network(80, 160), parameters, training=32)
    # The server's line: 4 · 160, 3 · 240 and 3 · 40 bits at 160 a second.
    assert (found.offline, found.upload, found.recovery) == (1 + 4, 2 + 4.5 + 4, 8 + 0.75 + 16)
    assert found.aggregation_only == 5 + 10.5 + 24.75
    assert found.non_overlapped == 5 + 10.5 + 24.75 + 32
    assert found.overlapped == 32 + 10.5 + 24.75
    assert phases(work, traffic, Network(80, 160), parameters, training=3).overlapped == 5 + 10.5 + 24.75


@pytest.mark.parametrize("length", [1, 999, 600_000])  # the last takes two parts a share
def test_counted_bytes_of_lightsecagg_are_those_that_a_client_sends(length: int) -> None:
    parameters, field = Parameters(6, 4, 2), PrimeField(2**31 - 1)
    codec = MaskCodec(field, parameters)
    own = RoundKey()
    keys = {peer: own.agree(RoundKey().public, bytes(32), 1, 1, peer) for peer in range(2, 7)}
    dealing = Dealing(codec, MaskName(1, 1, 0), length, keys, system_entropy)
    seed = dealing.own_seed
    sent = [len(message.data) for message in dealing.messages(lambda: False)]
    holding = Holding(codec, 1, length, keys)
    holding.keep_own(seed)
    answer = sum(len(part) for part in holding.answer(frozenset([1])))
    traffic = lightsecagg_traffic(parameters, field, length)
    assert traffic.offline_up == len(own.public) + sum(sent)
    assert traffic.offline_down == 5 * len(own.public) + sum(sent)
    assert traffic.upload == 4 * length
    assert traffic.recovery_up == answer


@pytest.mark.parametrize("plan", [GraphPlan(7, 6, 4), GraphPlan(9, 4, 3)], ids=str)
def test_counted_bytes_of_the_baselines_are_those_that_a_client_sends(plan: GraphPlan) -> None:
    graph = plan.graph(Random(0))
    clients = {i: Client(i, graph[i], plan.threshold) for i in graph}
    keys = {i: client.keys for i, client in clients.items()}
    sealed = {i: client.share(keys) for i, client in clients.items()}
    for sender in graph[1]:
        clients[1].take(sender, sealed[sender][1])
    traffic = pairwise_traffic(plan, 1000)
    assert traffic.offline_up == sum(map(len, keys[1])) + sum(map(len, sealed[1].values()))
    assert traffic.offline_down == sum(len(key) for peer in graph[1] for key in keys[peer]) + sum(
        len(sealed[peer][1]) for peer in graph[1]
    )
    assert traffic.upload == clients[1].mask(keys, 1000).nbytes
    assert traffic.recovery_up == clients[1].reveal(frozenset(graph)).shares.nbytes


def test_settings_are_the_papers_with_room_between_u_and_t_and_the_planners() -> None:
    found = [
        (s.parameters.target_survivors, s.parameters.privacy_threshold, s.parameters.unique_survivor_set)
        for s in paper_settings(200, (0.1, 0.3, 0.5))
    ]
    assert found == [(180, 100, True), (140, 100, False), (101, 100, False), (140, 60, True)]


def test_a_baseline_that_is_faster_anywhere_is_named_with_how_much() -> None:
    setting = paper_settings(20, ())[0]
    traffic = Traffic(1, 1, 1, 1, 1)
    seconds = {"LightSecAgg": 1.0, "SecAgg": 4.0, "SecAgg+": 2.0, "SecAgg+ N/10": 0.5}
    measured = [
        Measured(scheme, setting, 7, None, Work(0, 0, 0, 0, recovery), traffic)
        for scheme, recovery in seconds.items()
    ]
    comparison = Comparison(measured)
    assert comparison.gain(setting, 7, "SecAgg", FREE) == pytest.approx(4.0)
    assert comparison.gain(setting, 7, "SecAgg+ N/10", FREE) == pytest.approx(0.5)
    (slower,) = [sentence for sentence in losses(comparison) if "slower" in sentence]
    assert "slower than SecAgg+ N/10 in 6 of 6 cases" in slower
    assert "2 times" in slower


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole run at N = 10, and what it printed."""
    out = tmp_path_factory.mktemp("paper")
    arguments = ["--clients", "10", "--dimension", "1000", "--dimension", "70000", "--out", str(out)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out, result.output


def results(toy: tuple[Path, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((toy[0] / "paper.json").read_text())["results"]
    return found


def test_toy_run_measures_every_scheme_in_every_setting_at_every_size(toy: tuple[Path, str]) -> None:
    found = results(toy)
    labels = ["10%", "30%", "50%", "30% (planned)"]
    wanted = {(s, label, d) for s in SCHEMES for label in labels for d in (1000, 70_000)}
    assert {(one["scheme"], one["setting"], one["dimension"]) for one in found} == wanted
    assert len(found) == len(wanted)
    for one in found:
        assert set(one["work_seconds"].values()) != {0.0}
        assert (one["graph"] is None) == (one["scheme"] == "LightSecAgg")
        promised = 2 * one["target_survivors"] > one["num_clients"] + one["privacy_threshold"]
        assert one["has_promise_3"] is promised


def test_toy_run_has_totals_that_add_up_on_every_network(toy: tuple[Path, str]) -> None:
    for one in results(toy):
        assert len(one["modelled"]) == 6
        for seconds in one["modelled"].values():
            work = seconds["offline"] + seconds["upload"] + seconds["recovery"]
            assert seconds["aggregation-only"] == pytest.approx(work)
            assert seconds["non-overlapped"] == pytest.approx(work + seconds["training"])
            hidden = min(seconds["offline"], seconds["training"])
            assert seconds["overlapped"] == pytest.approx(work + seconds["training"] - hidden)
            assert work > sum(one["work_seconds"].values())


def test_toy_run_prints_its_tables_and_writes_page_and_picture(toy: tuple[Path, str]) -> None:
    out, printed = toy
    page, told = (out / "paper.md").read_text(), " ".join(printed.split())
    for words in ("Where LightSecAgg loses", "The network is a model", "100 are timed and scaled", "†"):
        assert words in told
        assert words in page
    assert page.count("| LightSecAgg |") == 8
    assert (out / "paper.png").read_bytes().startswith(b"\x89PNG")
