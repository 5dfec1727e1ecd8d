"""What a configuration file may say: one frozen model per section, under FedML's names, and what follows."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from lightsecagg.settings.checks import ConflictError, conflicts
from lightsecagg.settings.types import (
    Count,
    ExtraAnswers,
    FilePath,
    Name,
    NameOfRank,
    NotNegative,
    Optimizer,
    Port,
    Positive,
    PrimeNumber,
    Ranks,
    Rate,
    Seconds,
    SecureMethod,
    Seed,
    StalenessText,
    StalenessValues,
    Whole,
)

MIB = 2**20


class Section(BaseModel):
    """Base of the sections: strict types, immutable, and no input in pydantic's own messages (secrets)."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),  # FedML's keys begin with "model_" too
    )


class CommonArgs(Section):
    """``common_args``: what kind of run this is."""

    training_type: Name = "cross_silo"
    scenario: Name = "horizontal"
    using_mlops: bool = False
    random_seed: Seed = 0  # data partition, model initialisation, batch order, sampling; never masks


class EnvironmentArgs(Section):
    """``environment_args``: accepted for FedML's files, not served."""

    bootstrap: Name | None = None


class DataArgs(Section):
    """``data_args``: which data set, and how it is split into silos."""

    dataset: Name = "digits"
    data_cache_dir: FilePath = Field(default="~/.cache/lightsecagg", validate_default=True)
    partition_method: Literal["hetero", "homo"] = "hetero"
    partition_alpha: Positive = 0.5


class ModelArgs(Section):
    """``model_args``: which model and trainer, and where the global model goes."""

    model: Name = "lr"
    trainer: Name | None = None  # 'torch', 'numpy' or 'package.module:name'; None: the program chooses
    model_file_cache_folder: FilePath | None = None
    global_model_file_path: FilePath | None = None  # None: runs/RUN_ID/model.npz


class TrainArgs(Section):
    """``train_args``: the rounds, and local training."""

    federated_optimizer: Optimizer = "LSA"
    client_id_list: Ranks | None = None
    client_num_in_total: Count | None = None  # data silos; None: worker_num
    client_num_per_round: Count | None = None  # cohort size; None: worker_num
    comm_round: Count = 2  # rounds; lists, each one version of the model, in an asynchronous run
    epochs: Count = 1
    batch_size: Count = 10
    client_optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 0.03
    weight_decay: NotNegative = 0.001
    server_lr: Positive = 1.0  # share of the mean update that is added to the model


class ValidationArgs(Section):
    """``validation_args``: how often the global model is evaluated."""

    frequency_of_the_test: Count = 5  # every so many rounds, and at the end


class SecureAggregationArgs(Section):
    """``secure_aggregation_args``: the protocol's numbers, a client's own floors, and the steps' timeouts."""

    enable_sa: bool = True
    sa_method: SecureMethod = "lightsecagg"
    mode: Literal["sync", "async"] = "sync"  # async: every client trains at its own pace
    prime_number: PrimeNumber = "auto"
    strict: bool = False  # refuse a prime that cannot hold the sum, instead of replacing it
    precision_parameter: int = Field(default=16, ge=1, le=30)  # fraction bits
    clip: Positive = 8.0
    max_weight: int = Field(default=1000, ge=1, lt=2**32)
    rounding: Literal["nearest", "stochastic"] | None = None  # None: nearest, or stochastic in async mode

    targeted_number_active_clients: Count | None = None  # U; None: planned from the rates
    privacy_guarantee: Whole | None = None  # T; None: planned from the rates
    dropout_rate: Rate = 0.3
    collusion_rate: Rate = 0.3
    extra_answers: ExtraAnswers = 0

    min_clients: Count | None = None  # None: min(3, cohort size)
    min_privacy_threshold: Whole | None = None  # None: 1, or 0 for cohorts below 3
    require_unique_survivor_set: bool | None = None  # leave rounds without 2U > N + T; None: with a roster
    roster: FilePath | None = None
    identity: FilePath | None = None

    # Asynchronous runs only; a synchronous one ignores these.
    buffer_size: Count | None = None  # K, updates in one list; None: planned
    staleness: StalenessText = "constant"  # or 'polynomial(a)', 'hinge(a, b)'
    staleness_values: StalenessValues = (1, 2, 4)  # the weights that staleness is rounded to
    max_staleness: int = Field(default=10, ge=0, le=1024)  # versions; older updates are refused
    strict_weights: bool = False  # leave lists with fewer than T + 2 clients of one weight
    min_buffer_clients: Count | None = None  # distinct clients in a list; None: T + 2

    min_joined: Count | None = None  # None: cohort size
    upload_slots: Count = 4
    max_aborts: Count = 3
    join_timeout: Seconds = 300.0
    key_timeout: Seconds = 30.0
    share_timeout: Seconds = 60.0
    report_timeout: Seconds = 30.0
    upload_timeout: Seconds = 600.0
    slot_timeout: Seconds = 30.0
    recovery_timeout: Seconds = 60.0
    finish_timeout: Seconds = 10.0


class DeviceArgs(Section):
    """``device_args``: how many clients run, and on what."""

    worker_num: Count = 2
    using_gpu: bool = False
    gpu_mapping_file: FilePath | None = None
    gpu_mapping_key: Name | None = None
    codec_threads: Count = 1  # cores for masks and shares; torch gets the rest
    threads: Count | None = None  # torch threads; None: cores / clients on this host, less codec_threads


class GrpcArgs(Section):
    """``comm_args.grpc``: where the server listens and the clients look for it."""

    host: Name = "127.0.0.1"
    port: Port = 8890  # 0: any free port, of use to a server alone
    ca: FilePath | None = None  # client: who signed the server's certificate; server: who signs its clients'
    cert: FilePath | None = None  # own certificate chain, PEM; a server has TLS where it is set
    key: FilePath | None = None  # its private key
    insecure: bool = False  # plaintext beyond loopback


class MqttArgs(Section):
    """``comm_args.mqtt``: the broker over which server and clients meet, and who they are to it."""

    host: Name = "127.0.0.1"
    port: Port = 1883
    username: Name | None = None  # `{rank}` stands for the rank; the server's is 0
    password: SecretStr | None = None
    credentials: FilePath | None = None  # folder of `lightsecagg mqtt-config`: `server` and `client-RANK`
    ca: FilePath | None = None  # who signed the broker's certificate
    cert: FilePath | None = None  # own certificate, for brokers that ask for one
    key: FilePath | None = None
    insecure: bool = False  # plaintext beyond loopback
    embedded_broker: bool = False  # the server process is the broker; for trying out


class CommArgs(Section):
    """``comm_args``: the carrier, and when a peer counts as away, gone or stalled."""

    backend: Literal["GRPC", "LOCAL", "MPI", "MQTT", "MQTT_S3"] = "GRPC"
    grpc: GrpcArgs = GrpcArgs()
    mqtt: MqttArgs = MqttArgs()
    authenticated_as: NameOfRank | None = None  # how the carrier must know a client: client-{rank}
    mqtt_config_path: FilePath | None = None
    s3_config_path: FilePath | None = None
    grpc_ipconfig_path: FilePath | None = None
    heartbeat_interval: Seconds = 2.0
    heartbeat_timeout: Seconds = 10.0
    reconnect_window: Seconds = 30.0
    relay_buffer: int = Field(default=64 * MIB, ge=2 * MIB)  # bytes; one frame is up to 1 MiB and a header
    stall_timeout: Seconds = 60.0
    connect_timeout: Seconds = 300.0  # how long a client waits for the server


class TrackingArgs(Section):
    """``tracking_args``: where logs go, traces, and Weights & Biases."""

    log_file_dir: FilePath | None = None  # None: runs/RUN_ID
    trace: bool = False  # every step with its time, beside the logs; `lightsecagg trace` merges them
    enable_wandb: bool = False
    wandb_key: SecretStr | None = None  # or the environment's WANDB_API_KEY
    wandb_project: Name | None = None
    wandb_name: Name | None = None


class Settings(Section):
    """A whole configuration, checked: every value alone, and against the others.

    Raises:
        ConfigError: two values that exclude each other.
        pydantic.ValidationError: a wrong value; ``load`` turns it into a ConfigError.
    """

    common_args: CommonArgs = CommonArgs()
    environment_args: EnvironmentArgs = EnvironmentArgs()
    data_args: DataArgs = DataArgs()
    model_args: ModelArgs = ModelArgs()
    train_args: TrainArgs = TrainArgs()
    validation_args: ValidationArgs = ValidationArgs()
    secure_aggregation_args: SecureAggregationArgs = SecureAggregationArgs()
    device_args: DeviceArgs = DeviceArgs()
    comm_args: CommArgs = CommArgs()
    tracking_args: TrackingArgs = TrackingArgs()

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if problems := conflicts(self):
            raise ConflictError(problems)
        return self

    @property
    def secure(self) -> bool:
        """Whether updates are masked; if not, this is plain federated averaging."""
        return self.secure_aggregation_args.enable_sa and self.train_args.federated_optimizer == "LSA"

    @property
    def asynchronous(self) -> bool:
        """Whether clients train at their own pace and the server averages a buffer of their updates."""
        return self.secure_aggregation_args.mode == "async"

    @property
    def cohort_size(self) -> int:
        """N as configured: how many clients take part in a round when all are there."""
        return self.train_args.client_num_per_round or self.device_args.worker_num

    @property
    def num_silos(self) -> int:
        """Into how many parts the data set is split."""
        return self.train_args.client_num_in_total or self.device_args.worker_num

    @property
    def rounding(self) -> Literal["nearest", "stochastic"]:
        """How updates are rounded.

        Unbiased in async mode: there the errors of many small steps, each of few updates, would add up.
        """
        given = self.secure_aggregation_args.rounding
        return given or ("stochastic" if self.asynchronous else "nearest")

    @property
    def min_clients(self) -> int:
        """The smallest cohort that a client takes part in."""
        floor = self.secure_aggregation_args.min_clients
        return min(3, self.cohort_size) if floor is None else floor

    @property
    def min_privacy_threshold(self) -> int:
        """The smallest T that a client takes part with."""
        floor = self.secure_aggregation_args.min_privacy_threshold
        return (1 if self.cohort_size >= 3 else 0) if floor is None else floor

    @property
    def require_unique_survivor_set(self) -> bool:
        """Whether a client leaves rounds in which two survivor sets could be certified (promise 3).

        That promise needs a roster; with one it is demanded unless the file says otherwise.
        """
        demanded = self.secure_aggregation_args.require_unique_survivor_set
        return self.secure_aggregation_args.roster is not None if demanded is None else demanded

    @property
    def min_joined(self) -> int:
        """With how many clients the server may start once ``join_timeout`` is over."""
        minimum = self.secure_aggregation_args.min_joined
        return self.cohort_size if minimum is None else minimum

    def agreed(self) -> dict[str, str]:
        """What server and clients must hold alike, as ``section.key`` and text, for comparison at joining.

        The field is not among them: ``prime_number`` may be replaced, so the core compares the one in use.
        """
        secure, data = self.secure_aggregation_args, self.data_args
        values: dict[str, object] = {
            "common_args.random_seed": self.common_args.random_seed,
            "data_args.dataset": data.dataset,
            "data_args.partition_method": data.partition_method,
            "model_args.model": self.model_args.model,
            "train_args.federated_optimizer": self.train_args.federated_optimizer,
            "train_args.client_num_in_total": self.num_silos,
            "device_args.worker_num": self.device_args.worker_num,
            "secure_aggregation_args.enable_sa": str(self.secure).lower(),
            "secure_aggregation_args.mode": secure.mode,
            "secure_aggregation_args.precision_parameter": secure.precision_parameter,
            "secure_aggregation_args.clip": secure.clip,
            "secure_aggregation_args.max_weight": secure.max_weight,
            "secure_aggregation_args.rounding": self.rounding,
        }
        if data.partition_method == "hetero":  # the concentration means nothing in a uniform split
            values["data_args.partition_alpha"] = data.partition_alpha
        if self.asynchronous:
            values |= {
                "secure_aggregation_args.staleness": secure.staleness,
                "secure_aggregation_args.staleness_values": ", ".join(map(str, secure.staleness_values)),
                "secure_aggregation_args.max_staleness": secure.max_staleness,
            }
            if secure.buffer_size is not None:
                values["secure_aggregation_args.buffer_size"] = secure.buffer_size
        return {key: str(value) for key, value in sorted(values.items())}
