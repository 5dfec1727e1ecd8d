"""The cost model, pure functions: a round's phases from measured work, counted bytes and stated bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.baselines.graph import GraphPlan
from benchmarks.baselines.shamir import SHARE_BYTES
from lightsecagg.field import PrimeField
from lightsecagg.parameters import Parameters
from lightsecagg.protocol.wire import part_count, part_elements
from lightsecagg.randomness import SEED_BYTES
from lightsecagg.sealing import ROUND_KEY_BYTES, TAG_BYTES

PAIRWISE_ELEMENT_BYTES = 4  # integers modulo 2^32


@dataclass(frozen=True)
class Work:
    """Measured seconds of one thread; a client's are one client's, since clients work at the same time.

    Attributes:
        client_offline: all that can be done before the update is trained: keys, sharing, sealing, opening
            what the others sent, expanding masks.
        client_upload: adding the mask to the update.
        server_upload: adding all survivors' masked updates.
        client_recovery: one survivor's answer.
        server_recovery: taking the masks off the sum.
    """

    client_offline: float
    client_upload: float
    server_upload: float
    client_recovery: float
    server_recovery: float


@dataclass(frozen=True)
class Traffic:
    """Bytes of one client in each phase. Headers, signatures and the model itself are left out for all."""

    offline_up: int
    offline_down: int
    upload: int
    recovery_up: int
    recovery_down: int


@dataclass(frozen=True)
class Network:
    """Lines of stated bandwidth in bits a second, each way, without latency.

    All users are served at once: a transfer takes as long as the slower of one user's line, with that user's
    bytes, and the server's line, with everybody's.
    """

    user_bandwidth: int
    server_bandwidth: int

    def seconds(self, users: int, bytes_up: int, bytes_down: int = 0) -> float:
        """Time in which each of ``users`` sends and receives so many bytes."""
        bits = 8 * max(bytes_up, bytes_down)
        return max(bits / self.user_bandwidth, users * bits / self.server_bandwidth)


@dataclass(frozen=True)
class Phases:
    """Seconds of a round's phases, and their totals as the paper has them."""

    offline: float
    training: float
    upload: float
    recovery: float

    @property
    def non_overlapped(self) -> float:
        """One phase after another."""
        return self.aggregation_only + self.training

    @property
    def overlapped(self) -> float:
        """The offline phase hides behind the training, or the training behind it."""
        return max(self.offline, self.training) + self.upload + self.recovery

    @property
    def aggregation_only(self) -> float:
        """What secure aggregation takes if training takes no time."""
        return self.offline + self.upload + self.recovery


def phases(work: Work, traffic: Traffic, network: Network, parameters: Parameters, training: float) -> Phases:
    """A round of N clients of which U survive; within a phase nothing overlaps."""
    everybody, survivors = parameters.num_clients, parameters.target_survivors
    shares = network.seconds(everybody, traffic.offline_up, traffic.offline_down)
    updates = network.seconds(survivors, traffic.upload)
    answers = network.seconds(survivors, traffic.recovery_up, traffic.recovery_down)
    return Phases(
        offline=work.client_offline + shares,
        training=training,
        upload=work.client_upload + updates + work.server_upload,
        recovery=work.client_recovery + answers + work.server_recovery,
    )


def lightsecagg_traffic(parameters: Parameters, field: PrimeField, length: int) -> Traffic:
    """LightSecAgg: N − U shares of m elements out and in, seeds for the others, an answer of m elements.

    Args:
        length: coordinates of an update.
    """
    receivers, columns = parameters.dropout_tolerance, parameters.share_length(length)
    parts = part_count(columns, part_elements(field))
    share = columns * field.element_bytes + parts * TAG_BYTES
    seeds = (parameters.target_survivors - 1) * (SEED_BYTES + TAG_BYTES)
    return Traffic(
        offline_up=ROUND_KEY_BYTES + seeds + receivers * share,
        offline_down=(parameters.num_clients - 1) * ROUND_KEY_BYTES + seeds + receivers * share,
        upload=length * field.element_bytes,
        recovery_up=columns * field.element_bytes,
        recovery_down=_bitmap_bytes(parameters.num_clients),
    )


def pairwise_traffic(plan: GraphPlan, length: int) -> Traffic:
    """SecAgg and SecAgg+: two keys and two shares for each neighbour, one of each two shares back.

    Args:
        length: coordinates of an update.
    """
    shares = plan.degree * (2 * SHARE_BYTES + TAG_BYTES)
    return Traffic(
        offline_up=2 * ROUND_KEY_BYTES + shares,
        offline_down=plan.degree * 2 * ROUND_KEY_BYTES + shares,
        upload=length * PAIRWISE_ELEMENT_BYTES,
        recovery_up=(plan.degree + 1) * SHARE_BYTES,
        recovery_down=_bitmap_bytes(plan.num_clients),
    )


def _bitmap_bytes(num_clients: int) -> int:
    return -(-num_clients // 8)
