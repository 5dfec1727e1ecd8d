"""The commands as people type them: the scripts, the demo with PyTorch, identities and rosters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lightsecagg.cli.main import main
from lightsecagg.identity import Identity, encode_key
from tests.e2e.processes import HERE, PATIENCE, Run

ROOT = HERE.parent.parent


def script(run: Run, name: str, *words: str) -> subprocess.Popen[str]:
    """One of the shell scripts, started from another folder."""
    further = ["--cf", str(run.config), "--runs", str(run.folder / "runs")]
    return subprocess.Popen(
        ["bash", str(ROOT / name), *words, *further],
        cwd="/",
        env={**os.environ, "HOME": str(run.folder), "PYTHONPATH": str(HERE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_scripts_run_from_any_directory_and_pass_further_words_on(tmp_path: Path) -> None:
    with Run(tmp_path, workers=3) as run:
        processes = [script(run, "run_client.sh", str(rank), "my_run") for rank in (1, 2, 3)]
        processes.append(script(run, "run_server.sh", "my_run", "--set", "train_args.comm_round=1"))
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * 4, outputs
        assert (tmp_path / "runs" / "my_run" / "model.npz").exists()
        assert "round 1  done: clients 1 2 3 in the average" in outputs[3]
        assert "round 2" not in outputs[3]


@pytest.mark.parametrize("words", [["run_server.sh"], ["run_client.sh", "1"]])
def test_scripts_without_their_words_say_how_they_are_used(words: list[str]) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / words[0]), *words[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "usage: bash" in done.stderr


@pytest.mark.timeout(300)
def test_demo_with_torch_agrees_with_plain_averaging_that_loses_the_same_client(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lightsecagg", "demo", "--cf", str(ROOT / "config/fedml_config.yaml")]
    for change in ("device_args.worker_num=4", "train_args.comm_round=6"):
        words += ["--set", change]
    done = subprocess.run(
        [*words, "--runs", str(tmp_path)],
        env={**os.environ, "HOME": str(tmp_path), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The two accuracies agree within one point." in done.stdout
    assert done.stdout.count("lost client 3 (away) while uploading") == 2
    assert done.stdout.count("round 4  done: clients 1 2 4 in the average") == 2


def test_keygen_writes_an_identity_that_the_roster_takes(tmp_path: Path) -> None:
    runner, file, roster = CliRunner(), tmp_path / "me", tmp_path / "roster"
    made = runner.invoke(main, ["keygen", "--out", str(file)])
    assert made.exit_code == 0
    key = made.stdout.strip()
    assert key == encode_key(Identity.load(file).public)
    assert file.stat().st_mode & 0o777 == 0o600
    assert runner.invoke(main, ["roster", "add", str(roster), "--rank", "1", "--key", key]).exit_code == 0
    shown = runner.invoke(main, ["roster", "check", str(roster)])
    assert shown.exit_code == 0
    assert f"1 {key}" in shown.stdout


def test_keygen_overwrites_nothing_and_the_roster_takes_nobody_twice(tmp_path: Path) -> None:
    runner, file, roster = CliRunner(), tmp_path / "me", tmp_path / "roster"
    runner.invoke(main, ["keygen", "--out", str(file)])
    before = file.read_bytes()
    again = runner.invoke(main, ["keygen", "--out", str(file)])
    assert again.exit_code == 2
    assert "never overwritten" in again.stderr
    assert file.read_bytes() == before
    add = ["roster", "add", str(roster), "--identity", str(file), "--rank"]
    assert runner.invoke(main, [*add, "1"]).exit_code == 0
    twice = runner.invoke(main, [*add, "2"])
    assert twice.exit_code == 2
    assert "stands in the roster already" in twice.stderr
    assert len(roster.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("secure_aggregation_args.prime_number=1000", "composite"),
        ("secure_aggregation_args.prime_number=4294967311", "below"),
        ("secure_aggregation_args.targeted_number_active_clients=9", "at most"),
        ("secure_aggregation_args.collusion_rate=0.9", "the largest collusion rate"),
        ("data_args.dataset=mnist", "data_args"),
        ("comm_args.backend=LOCAL", "lightsecagg run"),
        ("comm_args.grpc.host=0.0.0.0", "insecure"),
        ("train_args.comm_round=many", "train_args.comm_round"),
        ("model_args.trainer=nowhere:Nothing", "model_args.trainer"),
        ("tracking_args.log_file_dir=/proc/nowhere", "cannot make"),
    ],
)
def test_wrong_configuration_is_told_in_one_line_and_uses_no_run_id(
    tmp_path: Path, change: str, said: str
) -> None:
    with Run(tmp_path, workers=4) as run:
        key = change.split("=", maxsplit=1)[0]
        extra = ["--set", f"data_args.data_cache_dir={tmp_path}"] if key == "data_args.dataset" else []
        server = run.server("--set", change, *extra)
        assert server.exit_code() == 2, server.output()
        assert said in server.output()
        assert "Traceback" not in server.output()
        assert not (tmp_path / "runs" / "r1" / "round").exists()


def test_misspelt_key_is_named_with_its_nearest_and_does_not_stop_the_run(tmp_path: Path) -> None:
    with Run(tmp_path, workers=3, secure_aggregation_args={"clipp": 8.0}) as run:
        alone = run._start(["run", *run._common()], None)
        assert alone.exit_code() == 0, alone.output()
        assert "clipp" in alone.output()
        assert "secure_aggregation_args.clip" in alone.output()
