"""Reading a configuration file: what is accepted, what is said, what is refused and how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from lightsecagg.errors import ConfigError
from lightsecagg.settings import Settings, load

HERE = Path(__file__).parent
FEDML = HERE / "fedml_light_sec_agg_example.yaml"
SHIPPED = HERE.parents[1] / "config" / "fedml_config.yaml"
WANDB_KEY = "ee0b00000000000000000000000000000000beef"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return to_file


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert caught.value.__cause__ is None
    # pydantic's error holds the values, secrets among them: no traceback may show it.
    assert not isinstance(caught.value.__context__, ValidationError)
    return str(caught.value)


def test_fedml_example_loads_as_it_is_and_says_what_is_not_served() -> None:
    settings, notices = load(FEDML)
    assert notices == [
        "comm_args.mqtt_config_path: config/mqtt_config.yaml is not there; what comm_args.mqtt says, or its "
        "defaults, stand",
        "environment_args.bootstrap: not run: 'config/bootstrap.sh'",
        "comm_args.backend: MQTT_S3 means MQTT with the models in the messages, not in S3",
        "comm_args.s3_config_path: not served; nothing is stored in S3",
    ]
    assert settings.secure
    assert (settings.cohort_size, settings.num_silos, settings.device_args.worker_num) == (2, 1000, 2)
    assert (settings.min_clients, settings.min_privacy_threshold) == (2, 0)
    assert settings.secure_aggregation_args.prime_number == 1997
    assert settings.secure_aggregation_args.precision_parameter == 10
    assert settings.comm_args.backend == "MQTT_S3"
    assert settings.train_args.client_id_list is None
    assert settings.data_args.data_cache_dir == Path.home() / "fedml_data"
    assert settings.tracking_args.wandb_key is not None
    assert settings.tracking_args.wandb_key.get_secret_value() == WANDB_KEY


def test_fedml_example_over_grpc_says_nothing_of_mqtt_and_s3() -> None:
    _, notices = load(FEDML, ["comm_args.backend=GRPC"])
    assert notices == ["environment_args.bootstrap: not run: 'config/bootstrap.sh'"]


def test_shipped_file_loads_without_a_word_and_trains_digits_with_five_clients() -> None:
    settings, notices = load(SHIPPED)
    assert notices == []
    assert settings.device_args.worker_num == settings.cohort_size == settings.num_silos == 5
    assert (settings.data_args.dataset, settings.model_args.model) == ("digits", "lr")
    assert (settings.min_clients, settings.min_privacy_threshold, settings.min_joined) == (3, 1, 5)
    assert settings.validation_args.frequency_of_the_test == 1


def test_shipped_file_repeats_no_default_wrongly() -> None:
    """What the file shows as usual is what a file without the key gives, but for the deliberate choices."""
    shipped = load(SHIPPED)[0].model_dump()
    default = Settings().model_dump()
    differing = {f"{s}.{k}" for s in shipped for k in shipped[s] if shipped[s][k] != default[s][k]}
    assert differing == {
        "device_args.worker_num",
        "train_args.comm_round",
        "train_args.epochs",
        "train_args.learning_rate",
        "validation_args.frequency_of_the_test",
    }


def test_sections_and_keys_left_empty_have_their_defaults(write: Write) -> None:
    settings, notices = load(write("train_args:\ncomm_args:\n  grpc:\ndata_args: {}\n"))
    assert settings == Settings()
    assert notices == []


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("train_args:\n  learnin_rate: 0.1\n", "train_args.learnin_rate", "train_args.learning_rate"),
        ("train_args:\n  Comm-Round: 1\n", "train_args.Comm-Round", "train_args.comm_round"),
        ("comm_args:\n  grpc:\n    hots: x\n", "comm_args.grpc.hots", "comm_args.grpc.host"),
        ("data_args:\n  comm_round: 3\n", "data_args.comm_round", "train_args.comm_round"),
        ("worker_num: 3\n", "worker_num", "device_args.worker_num"),
        ("train_arg:\n  epochs: 1\n", "train_arg", "train_args"),
        (
            "secure_aggregation_args:\n  min_client: 9\n",
            "secure_aggregation_args.min_client",
            "secure_aggregation_args.min_clients",
        ),
    ],
)
def test_unknown_key_is_ignored_with_a_warning_that_names_the_nearest(
    write: Write, text: str, key: str, nearest: str
) -> None:
    path = write(text)
    settings, notices = load(path)
    assert settings == Settings()
    assert notices == [f"{path}: {key}: unknown key, ignored; the nearest known key is {nearest}"]


def test_unknown_key_like_no_other_is_named_alone(write: Write) -> None:
    path = write("qqqq: 1\n1: 2\n")
    assert load(path)[1] == [f"{path}: qqqq: unknown key, ignored", f"{path}: 1: unknown key, ignored"]


def test_unknown_key_of_an_override_is_refused() -> None:
    """A file may be FedML's and know more than we do; a word of the command line is meant for us."""
    with pytest.raises(ConfigError) as caught:
        load(SHIPPED, ["train_args.epoch=3"])
    nearest = "the nearest known key is train_args.epochs"
    assert str(caught.value) == f"--set train_args.epoch: unknown key; {nearest}"


@pytest.mark.parametrize(
    ("key", "value", "wanted", "found"),
    [
        ("common_args.random_seed", "-1", "at least 0", "-1"),
        ("data_args.dataset", "3", "text (in quotes, if it looks like something else)", "3"),
        ("data_args.dataset", "''", "text", "''"),
        ("data_args.partition_method", "mixed", "'hetero' or 'homo'", "'mixed'"),
        ("data_args.partition_alpha", "0", "more than 0", "0"),
        ("data_args.data_cache_dir", "7", "a path", "7"),
        ("model_args.model", "", "text (in quotes, if it looks like something else)", "nothing"),
        (
            "train_args.federated_optimizer",
            "SA",
            "'LSA' (secure) or 'FedAvg' (the same run without masks)",
            "'SA'",
        ),
        ("train_args.comm_round", "0", "at least 1", "0"),
        ("train_args.comm_round", "2.5", "a whole number", "2.5"),
        ("train_args.epochs", "true", "a whole number", "true"),
        ("train_args.batch_size", "'10'", "a whole number", "'10'"),
        ("train_args.client_optimizer", "sdg", "'sgd' or 'adam'", "'sdg'"),
        ("train_args.learning_rate", "fast", "a number", "'fast'"),
        ("train_args.learning_rate", ".inf", "a finite number", "inf"),
        (
            "train_args.client_id_list",
            "[1, 1]",
            "a list of distinct client ranks from 1, or an empty one",
            "a list",
        ),
        ("validation_args.frequency_of_the_test", "{a: b}", "a whole number", "a mapping"),
        ("secure_aggregation_args.enable_sa", "1", "true or false", "1"),
        (
            "secure_aggregation_args.sa_method",
            "secagg",
            "'lightsecagg' (FedML's other methods are not served)",
            "'secagg'",
        ),
        (
            "secure_aggregation_args.prime_number",
            "4294967296",
            "'auto', or a prime number below 4294967296 in digits",
            "4294967296",
        ),
        (
            "secure_aggregation_args.prime_number",
            "2 ** 15 - 19",
            "'auto', or a prime number below 4294967296 in digits",
            "'2 ** 15 - 19'",
        ),
        ("secure_aggregation_args.precision_parameter", "31", "at most 30", "31"),
        ("secure_aggregation_args.clip", ".nan", "a finite number", "nan"),
        ("secure_aggregation_args.dropout_rate", "1", "less than 1", "1"),
        ("secure_aggregation_args.extra_answers", "2", "0 (robust decoding is not in this version)", "2"),
        (
            "secure_aggregation_args.extra_answers",
            "false",
            "0 (robust decoding is not in this version)",
            "false",
        ),
        ("secure_aggregation_args.mode", "asynchronous", "'sync' or 'async'", "'asynchronous'"),
        ("secure_aggregation_args.mode", "true", "'sync' or 'async'", "true"),
        ("secure_aggregation_args.buffer_size", "0", "at least 1", "0"),
        ("secure_aggregation_args.min_buffer_clients", "0", "at least 1", "0"),
        ("secure_aggregation_args.max_staleness", "-1", "at least 0", "-1"),
        ("secure_aggregation_args.max_staleness", "1025", "at most 1024", "1025"),
        ("secure_aggregation_args.strict_weights", "1", "true or false", "1"),
        ("train_args.server_lr", "0", "more than 0", "0"),
        ("secure_aggregation_args.share_timeout", "0", "more than 0", "0"),
        ("device_args.worker_num", "0", "at least 1", "0"),
        ("comm_args.backend", "HTTP", "'GRPC', 'LOCAL', 'MPI', 'MQTT' or 'MQTT_S3'", "'HTTP'"),
        ("comm_args.grpc.port", "65536", "at most 65535", "65536"),
        ("comm_args.grpc", "3", "keys with values below it", "a single value"),
        ("comm_args.relay_buffer", "1000", "at least 2097152", "1000"),
    ],
)
def test_wrong_value_is_refused_with_key_wanted_and_found(
    key: str, value: str, wanted: str, found: str
) -> None:
    assert refusal(SHIPPED, f"{key}={value}") == f"--set {key}: wanted {wanted}, found {found}"


def test_wrong_values_in_a_file_are_all_named_with_the_file(write: Write) -> None:
    path = write("train_args:\n  epochs: 0\n  batch_size: big\ndata_args: [a]\n")
    assert set(refusal(path).splitlines()) == {
        f"{path}: train_args.epochs: wanted at least 1, found 0",
        f"{path}: train_args.batch_size: wanted a whole number, found 'big'",
        f"{path}: data_args: wanted keys with values below it, found a list",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train_args:\n  epochs: 1\n  epochs: 2\n", "line 3, column 3: wanted YAML, found: the key 'epochs'"),
        ("train_args: {}\ntrain_args: {}\n", "line 2, column 1: wanted YAML, found: the key 'train_args'"),
        ("", "found nothing"),
        ("- a\n", "found a list"),
        ("just text\n", "found 'just text'"),
        ("a: [1\n", "wanted YAML, found"),
        ("a: 1\n---\nb: 2\n", "wanted YAML, found"),
        ("a: !!python/object/apply:os.getcwd []\n", "wanted YAML, found"),
        ("a: 2024-99-99\n", "a value that cannot be read"),
        ("a: \x07\n", "a character that YAML does not allow"),
        ("? [1, 2]\n: 3\n", "wanted YAML, found"),
    ],
)
def test_file_that_holds_no_sections_is_refused(write: Write, text: str, said: str) -> None:
    path = write(text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert said in message


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml").endswith("wanted a configuration file, found no such file")
    assert refusal(tmp_path).startswith(f"{tmp_path}: wanted a configuration file")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: \xe9\n")
    assert refusal(latin) == f"{latin}: wanted text in UTF-8, found other bytes"
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (2**20 + 1))
    assert "more than 1048576 bytes" in refusal(large)


def test_anchors_merged_into_a_section_are_no_repeated_keys(write: Write) -> None:
    text = "train_args: &t\n  epochs: 3\nvalidation_args: {}\n"
    assert load(write(text + "model_args: {<<: {model: cnn}, model: lr}\n"))[0].model_args.model == "lr"


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("2E4", 2e4), ("1.5e-2", 0.015), ("3", 3.0)])
def test_numbers_in_scientific_notation_are_numbers(write: Write, text: str, value: float) -> None:
    assert load(write(f"train_args:\n  learning_rate: {text}\n"))[0].train_args.learning_rate == value


def test_overrides_reach_every_depth_and_the_last_one_stands() -> None:
    settings, _ = load(
        SHIPPED,
        [
            "comm_args.grpc.host=10.0.0.5",
            "train_args.epochs=2",
            "train_args.epochs=3",
            "secure_aggregation_args.roster=~/roster.json",
            "train_args.client_num_per_round=",
            "model_args.trainer=package.module:name=x",
        ],
    )
    assert settings.comm_args.grpc.host == "10.0.0.5"
    assert settings.comm_args.grpc.port == 8890
    assert settings.train_args.epochs == 3
    assert settings.secure_aggregation_args.roster == Path.home() / "roster.json"
    assert settings.train_args.client_num_per_round is None
    assert settings.model_args.trainer == "package.module:name=x"


def test_override_makes_a_section_that_the_file_lacks(write: Write) -> None:
    assert load(write("train_args:\n"), ["comm_args.grpc.port=1234"])[0].comm_args.grpc.port == 1234


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("worker_num=3", "--set: wanted section.key=value, found 'worker_num'"),
        ("train_args.epochs", "--set: wanted section.key=value, found 'train_args.epochs'"),
        ("train_args.=3", "--set: wanted section.key=value, found 'train_args.'"),
        ("", "--set: wanted section.key=value, found ''"),
        (
            "data_args.dataset.name=x",
            "--set data_args.dataset.name: wanted a section at data_args.dataset, found 'digits'",
        ),
        ("train_args.epochs={", "--set train_args.epochs, line 1, column 2: wanted YAML"),
    ],
)
def test_override_that_is_none_is_refused(override: str, said: str) -> None:
    assert refusal(SHIPPED, override).startswith(said)


@pytest.mark.parametrize(
    ("override", "notice"),
    [
        (
            "common_args.training_type=simulation",
            "common_args.training_type: 'simulation' is not served; runs as 'cross_silo'",
        ),
        (
            "common_args.scenario=hierarchical",
            "common_args.scenario: 'hierarchical' is not served; runs as 'horizontal'",
        ),
        (
            "common_args.using_mlops=true",
            "common_args.using_mlops: not served; nothing is sent to FedML's platform",
        ),
        (
            "train_args.client_id_list=[1, 2]",
            "train_args.client_id_list: not served; the clients are the ranks 1 to worker_num",
        ),
        (
            "comm_args.grpc_ipconfig_path=config/ip.csv",
            "comm_args.grpc_ipconfig_path: config/ip.csv is not there; what comm_args.grpc says, or its "
            "defaults, stand",
        ),
        (
            "train_args.federated_optimizer=FedAvg",
            "train_args.federated_optimizer: FedAvg: updates are sent without masks, and the server "
            "sees each one",
        ),
        (
            "secure_aggregation_args.enable_sa=false",
            "secure_aggregation_args.enable_sa: false: updates are sent without masks, and the server "
            "sees each one",
        ),
        (
            "secure_aggregation_args.require_unique_survivor_set=true",
            "secure_aggregation_args.require_unique_survivor_set: without a roster the server can invent "
            "clients, so only the inequality is checked",
        ),
    ],
)
def test_what_is_not_served_says_so_by_name(override: str, notice: str) -> None:
    assert load(SHIPPED, [override])[1] == [notice]


class TestSecrets:
    """The key of Weights & Biases is in no repr, no error and no notice."""

    def test_key_is_in_no_repr(self) -> None:
        settings, notices = load(FEDML)
        for text in (repr(settings), str(settings), repr(settings.tracking_args), *notices):
            assert WANDB_KEY not in text

    @pytest.mark.parametrize(
        "text",
        [
            f"tracking_args:\n  wandb_key: [{WANDB_KEY}]\n",
            f"tracking_args: {WANDB_KEY}\n",
            f"tracking_args:\n  wandb_key: {{a: {WANDB_KEY}}}\n",
            f"tracking_args:\n  wandb_key: {WANDB_KEY}: x\n",
            f"tracking_args:\n  wandb_key: !{WANDB_KEY[:3]} '{WANDB_KEY}\n",
            f"tracking_args:\n  wandb_key: {WANDB_KEY}\ntrain_args:\n  epochs: 0\n",
        ],
    )
    def test_key_is_in_no_error(self, write: Write, text: str) -> None:
        assert WANDB_KEY not in refusal(write(text))

    def test_key_that_reads_as_a_number_is_refused_unseen(self) -> None:
        assert refusal(SHIPPED, "tracking_args.wandb_key=1234").endswith("found <secret>")
        assert "1234" not in refusal(SHIPPED, "tracking_args.wandb_key 1234")


@pytest.mark.parametrize(
    ("text", "ranks"), [('"[]"', ()), ('"[1, 2]"', (1, 2)), ("[2, 1]", (2, 1)), ("[]", ())]
)
def test_client_lists_of_fedml_files_are_read_as_text_too(text: str, ranks: tuple[int, ...]) -> None:
    settings, _ = load(SHIPPED, [f"train_args.client_id_list={text}"])
    assert settings.train_args.client_id_list == ranks
