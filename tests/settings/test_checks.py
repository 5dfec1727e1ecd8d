"""Settings that exclude each other, and what follows from those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lightsecagg.errors import ConfigError
from lightsecagg.settings import Settings, load
from lightsecagg.settings.schema import DeviceArgs, TrainArgs

SHIPPED = Path(__file__).parents[2] / "config" / "fedml_config.yaml"  # five clients

SA = "secure_aggregation_args"
ASYNC = f"{SA}.mode=async"


def shipped(*overrides: str) -> Settings:
    return load(SHIPPED, overrides)[0]


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (
            ["train_args.client_num_per_round=5"],
            ["train_args.client_num_per_round=6"],
            "train_args.client_num_per_round: wanted at most device_args.worker_num (5), found 6",
        ),
        (
            ["train_args.client_num_per_round=2"],
            ["train_args.client_num_per_round=1"],
            "train_args.client_num_per_round: wanted at least 2 for secure aggregation (the sum of one "
            "client is its update), found 1",
        ),
        (
            ["device_args.worker_num=1", "train_args.federated_optimizer=FedAvg"],
            ["device_args.worker_num=1"],
            "device_args.worker_num: wanted at least 2 for secure aggregation (the sum of one client is its "
            "update), found 1",
        ),
        (
            ["train_args.client_num_in_total=5"],
            ["train_args.client_num_in_total=4"],
            "train_args.client_num_in_total: wanted at least device_args.worker_num (5), a data silo for "
            "each client, found 4",
        ),
        (
            [f"{SA}.targeted_number_active_clients=5"],
            [f"{SA}.targeted_number_active_clients=6"],
            f"{SA}.targeted_number_active_clients: wanted at most the clients of a round (5), found 6",
        ),
        (
            [f"{SA}.targeted_number_active_clients=3", f"{SA}.privacy_guarantee=2"],
            [f"{SA}.targeted_number_active_clients=3", f"{SA}.privacy_guarantee=3"],
            f"{SA}.privacy_guarantee: wanted less than {SA}.targeted_number_active_clients (3), found 3",
        ),
        (
            [f"{SA}.privacy_guarantee=4"],
            [f"{SA}.privacy_guarantee=5"],
            f"{SA}.privacy_guarantee: wanted less than the clients of a round (5), found 5",
        ),
        (
            [
                f"{SA}.targeted_number_active_clients=4",
                f"{SA}.privacy_guarantee=2",
                f"{SA}.require_unique_survivor_set=true",
            ],
            [
                f"{SA}.targeted_number_active_clients=3",
                f"{SA}.privacy_guarantee=1",
                f"{SA}.require_unique_survivor_set=true",
            ],
            f"{SA}.require_unique_survivor_set: wanted false, or targeted_number_active_clients of at least "
            "4 (2U > N + T with N = 5, T = 1), found true with targeted_number_active_clients 3",
        ),
        (
            [f"{SA}.min_clients=5"],
            [f"{SA}.min_clients=6"],
            f"{SA}.min_clients: wanted at most the clients of a round (5), found 6",
        ),
        (
            [f"{SA}.min_privacy_threshold=4"],
            [f"{SA}.min_privacy_threshold=5"],
            f"{SA}.min_privacy_threshold: wanted less than the clients of a round (5), found 5",
        ),
        (
            [f"{SA}.min_privacy_threshold=2", f"{SA}.privacy_guarantee=2"],
            [f"{SA}.min_privacy_threshold=3", f"{SA}.privacy_guarantee=2"],
            f"{SA}.min_privacy_threshold: wanted at most {SA}.privacy_guarantee (2), found 3",
        ),
        (
            [f"{SA}.min_privacy_threshold=0", f"{SA}.privacy_guarantee=0"],
            [f"{SA}.privacy_guarantee=0"],
            f"{SA}.min_privacy_threshold: wanted at most {SA}.privacy_guarantee (0), found 1 (its default)",
        ),
        (
            [f"{SA}.min_joined=5"],
            [f"{SA}.min_joined=6"],
            f"{SA}.min_joined: wanted at most device_args.worker_num (5), found 6",
        ),
        (
            [f"{SA}.min_joined=3"],
            [f"{SA}.min_joined=2"],
            f"{SA}.min_joined: wanted at least {SA}.min_clients (3), found 2",
        ),
        (
            [f"{SA}.min_joined=2", f"{SA}.min_clients=1"],
            [f"{SA}.min_joined=1", f"{SA}.min_clients=1"],
            f"{SA}.min_joined: wanted at least 2 for secure aggregation, found 1",
        ),
        (
            [f"{SA}.min_joined=4", f"{SA}.targeted_number_active_clients=4"],
            [f"{SA}.min_joined=3", f"{SA}.targeted_number_active_clients=4"],
            f"{SA}.min_joined: wanted at least {SA}.targeted_number_active_clients (4), found 3",
        ),
        (
            ["comm_args.heartbeat_timeout=2.5"],
            ["comm_args.heartbeat_timeout=2"],
            "comm_args.heartbeat_timeout: wanted more than comm_args.heartbeat_interval (2), found 2",
        ),
        (
            [ASYNC, "train_args.client_num_per_round=5"],
            [ASYNC, "train_args.client_num_per_round=4"],
            "train_args.client_num_per_round: wanted nothing, or device_args.worker_num (5): in async mode "
            "no client waits for a round, found 4",
        ),
        (
            [ASYNC],
            [ASYNC, "train_args.client_num_per_round=6"],
            "train_args.client_num_per_round: wanted nothing, or device_args.worker_num (5): in async mode "
            "no client waits for a round, found 6",
        ),
        (
            [ASYNC, "device_args.worker_num=1024"],
            [ASYNC, "device_args.worker_num=1025"],
            "device_args.worker_num: wanted at most 1024 in async mode (each client has a slot for the whole "
            "run), found 1025",
        ),
        (
            [ASYNC, f"{SA}.buffer_size=3", f"{SA}.min_buffer_clients=3"],
            [ASYNC, f"{SA}.buffer_size=3", f"{SA}.min_buffer_clients=4"],
            f"{SA}.buffer_size: wanted at least {SA}.min_buffer_clients (4), found 3",
        ),
        (
            [ASYNC, f"{SA}.buffer_size=4", f"{SA}.privacy_guarantee=2"],
            [ASYNC, f"{SA}.buffer_size=3", f"{SA}.privacy_guarantee=2"],
            f"{SA}.buffer_size: wanted at least {SA}.privacy_guarantee + 2 (4), found 3",
        ),
        (
            [ASYNC, f"{SA}.min_buffer_clients=4", f"{SA}.privacy_guarantee=2"],
            [ASYNC, f"{SA}.min_buffer_clients=3", f"{SA}.privacy_guarantee=2"],
            f"{SA}.min_buffer_clients: wanted at least {SA}.privacy_guarantee + 2 (4): T colluders must "
            "leave two updates unknown, found 3",
        ),
        (
            [ASYNC, f"{SA}.min_buffer_clients=5"],
            [ASYNC, f"{SA}.min_buffer_clients=6"],
            f"{SA}.min_buffer_clients: wanted at most device_args.worker_num (5), found 6",
        ),
    ],
)
def test_conflict_is_refused_and_its_neighbour_is_not(good: list[str], bad: list[str], message: str) -> None:
    assert isinstance(shipped(*good), Settings)
    with pytest.raises(ConfigError) as caught:
        shipped(*bad)
    (line,) = str(caught.value).splitlines()
    assert line.removeprefix("--set ").removeprefix(f"{SHIPPED}: ") == message


def test_conflict_between_the_file_s_own_values_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train_args:\n  client_num_per_round: 3\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    expected = f"{path}: train_args.client_num_per_round: wanted at most device_args.worker_num (2), found 3"
    assert str(caught.value) == expected


def test_settings_made_in_code_are_checked_too() -> None:
    assert Settings(device_args=DeviceArgs(worker_num=4)).cohort_size == 4
    with pytest.raises(ConfigError, match=r"train_args\.client_num_per_round: wanted at most"):
        Settings(train_args=TrainArgs(client_num_per_round=3))


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().train_args.epochs = 2  # type: ignore[misc]


def test_conflict_of_asynchronous_keys_is_none_in_a_synchronous_run() -> None:
    keys = [f"{SA}.buffer_size=2", f"{SA}.min_buffer_clients=9", f"{SA}.staleness=hinge(1, 1)"]
    many = "device_args.worker_num=1025"
    assert shipped(*keys, many, "train_args.client_num_per_round=4").agreed() == (
        shipped(many, "train_args.client_num_per_round=4").agreed()
    )
    with pytest.raises(ConfigError, match="min_buffer_clients"):
        shipped(*keys, ASYNC)


@pytest.mark.parametrize(("override", "is_so"), [(ASYNC, True), (f"{SA}.mode=sync", False)])
def test_asynchronous_follows_the_mode_with_and_without_masks(override: str, is_so: bool) -> None:
    assert shipped(override).asynchronous is is_so
    assert shipped(override, "train_args.federated_optimizer=FedAvg").asynchronous is is_so


@pytest.mark.parametrize(
    ("override", "secure"),
    [
        ("common_args.random_seed=1", True),
        ("train_args.federated_optimizer=FedAvg", False),
        ("secure_aggregation_args.enable_sa=false", False),
    ],
)
def test_secure_needs_both_keys(override: str, secure: bool) -> None:
    assert shipped(override).secure is secure


@pytest.mark.parametrize(("clients", "floor", "threshold"), [(2, 2, 0), (3, 3, 1), (4, 3, 1), (9, 3, 1)])
def test_floors_follow_the_cohort_until_they_are_given(clients: int, floor: int, threshold: int) -> None:
    settings = shipped("device_args.worker_num=10", f"train_args.client_num_per_round={clients}")
    assert (settings.min_clients, settings.min_privacy_threshold) == (floor, threshold)
    given = shipped(f"{SA}.min_clients=4", f"{SA}.min_privacy_threshold=2")
    assert (given.min_clients, given.min_privacy_threshold) == (4, 2)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("data_args.dataset=mnist", "data_args.dataset", "mnist"),
        ("data_args.partition_alpha=1", "data_args.partition_alpha", "1.0"),
        ("model_args.model=cnn", "model_args.model", "cnn"),
        ("common_args.random_seed=7", "common_args.random_seed", "7"),
        ("train_args.client_num_in_total=9", "train_args.client_num_in_total", "9"),
        (f"{SA}.precision_parameter=8", f"{SA}.precision_parameter", "8"),
        (f"{SA}.clip=4", f"{SA}.clip", "4.0"),
        (f"{SA}.max_weight=10", f"{SA}.max_weight", "10"),
        (f"{SA}.rounding=stochastic", f"{SA}.rounding", "stochastic"),
        (f"{SA}.enable_sa=false", f"{SA}.enable_sa", "false"),
    ],
)
def test_agreed_names_the_key_that_differs(override: str, key: str, value: str) -> None:
    ours, theirs = shipped().agreed(), shipped(override).agreed()
    assert {name for name in ours if ours[name] != theirs.get(name)} == {key}
    assert theirs[key] == value


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        (f"{SA}.buffer_size=4", f"{SA}.buffer_size", "4"),
        (f"{SA}.staleness=polynomial(0.50)", f"{SA}.staleness", "polynomial(0.5)"),
        (f"{SA}.staleness_values=[1, 3]", f"{SA}.staleness_values", "1, 3"),
        (f"{SA}.max_staleness=0", f"{SA}.max_staleness", "0"),
    ],
)
def test_agreed_names_the_asynchronous_keys_in_async_mode_only(override: str, key: str, value: str) -> None:
    ours, theirs = shipped(ASYNC).agreed(), shipped(ASYNC, override).agreed()
    assert {name for name in theirs if theirs[name] != ours.get(name)} == {key}
    assert theirs[key] == value
    assert shipped(override).agreed() == shipped().agreed()
    assert shipped(ASYNC).agreed()[f"{SA}.mode"] == "async"


@pytest.mark.parametrize("override", [f"{SA}.strict_weights=true", f"{SA}.min_buffer_clients=4"])
def test_agreed_is_silent_about_a_client_s_own_floors_of_lists(override: str) -> None:
    assert shipped(ASYNC, override).agreed() == shipped(ASYNC).agreed()


@pytest.mark.parametrize(
    "override",
    [
        "train_args.learning_rate=0.5",
        "train_args.server_lr=0.5",
        "train_args.epochs=7",
        "comm_args.grpc.host=10.0.0.5",
        "model_args.trainer=numpy",
        f"{SA}.min_clients=5",
        f"{SA}.clip=8",
        "tracking_args.wandb_key=abc",
        "train_args.client_num_in_total=5",
    ],
)
def test_agreed_is_silent_about_what_may_differ(override: str) -> None:
    assert shipped().agreed() == shipped(override).agreed()


def test_agreed_leaves_out_the_concentration_of_a_uniform_split() -> None:
    uniform = "data_args.partition_method=homo"
    assert shipped(uniform).agreed() == shipped(uniform, "data_args.partition_alpha=9").agreed()
