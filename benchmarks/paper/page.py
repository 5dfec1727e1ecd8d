"""docs/paper.md: how it was measured and what came out, with every number from this run."""

from __future__ import annotations

from benchmarks.paper.comparison import SPARSER
from benchmarks.paper.settings import QUANTIZER, SERVER_BANDWIDTHS, USER_BANDWIDTHS, training_seconds
from benchmarks.paper.tables import Comparison, gains_grid, losses, times_grid, traffic_grid
from benchmarks.paper.theirs import TIMED_PAIRS

_COMPUTATION = (
    "Computation is measured on this machine, in processor seconds of one thread: one client's work, since"
    " clients work at the same time, and the server's. Of the pairwise masks that the server of SecAgg and"
    f" SecAgg+ takes off, {TIMED_PAIRS} are timed and scaled; all else runs in full. More cores would "
    "shorten the server's work of all three, and of SecAgg most, which has most of it."
)
_MODEL = (
    "A transfer takes as long as the slower of a user's line, with that user's bytes, and the server's, "
    "with everybody's; lines carry so much each way, and there is no latency. Within a phase nothing "
    "overlaps, though LightSecAgg's clients do send one part of a share while they compute the next."
)
_DROPOUTS = (
    "Who drops out has shared and vanishes before it uploads: the worst moment for SecAgg and SecAgg+."
)
_ALIKE = (
    "Masks come of AES-256-CTR and keys of X25519 in all of them. Quantization, signatures, message "
    "headers and the model's way to the clients are left out for all."
)
_PLANS = (
    "SecAgg recovers a secret from T + 1 shares. SecAgg+ has the smallest degree k, and the threshold t, "
    "with which Google's parameter finder holds security 2^-40 against T colluders and correctness 2^-20 "
    f"at this dropout rate; k = N − 1 where only the complete graph does. {SPARSER} is as sparse as N/10 "
    "colluders allow, a weaker promise than the others' in its row."
)
_PROMISES = (
    "At a † LightSecAgg lacks promise 3 (2U ≤ N + T): a server that lies about who survived may have "
    "two survivor sets certified. The planned row is Parameters.from_rates(N, 0.3, 0.3) and keeps every "
    "promise."
)
_WHY = (
    "A share is as long as d / (U − T), and a client sends N − U of them: what LightSecAgg saves the "
    "server in recovery it pays for in traffic before the upload. Where T = N/2 leaves U next to T, as at "
    "50 % dropouts, that is dear; a smaller T cures it."
)


def notes(comparison: Comparison) -> list[str]:
    """What is measured, modelled and assumed: nobody should read the numbers without."""
    field = QUANTIZER.smallest_field(comparison.settings[0].parameters.num_clients)
    users = ", ".join(f"{user / 10**6:g}" for user in USER_BANDWIDTHS)
    servers = " or ".join(f"{server / 10**9:g}" for server in SERVER_BANDWIDTHS)
    return [
        _COMPUTATION,
        f"The network is a model: {users} Mb/s a user, {servers} Gb/s at the server. {_MODEL}",
        _DROPOUTS,
        f"Training is assumed: {training_seconds(1_206_590):g} s for the CNN (the paper's, from memory) and "
        "in proportion to the parameters for the others. Overlapped, the offline phase hides behind it (the "
        "expansion of SecAgg's masks too); aggregation-only leaves it out.",
        f"LightSecAgg works in a field of {field.element_bits} bits, {field.element_bytes} bytes an "
        f"element; the others modulo 2^32, which is faster. {_ALIKE}",
        _PLANS,
        _PROMISES,
    ]


def page(comparison: Comparison, machine: str) -> str:
    """The whole page."""
    parameters = comparison.settings[0].parameters
    grids = [grid(comparison).markdown() for grid in (times_grid, gains_grid, traffic_grid)]
    return "\n".join(
        [
            "# LightSecAgg beside SecAgg and SecAgg+\n",
            f"N = {parameters.num_clients}, the dropout rates and sizes of So et al., MLSys 2022. Written "
            f"by `make bench-paper` on a machine with {machine}; `benchmarks/results/paper.json` has every "
            "figure.\n",
            "![Seconds of a round by phase, and gains](paper.png)\n",
            "## How to read it\n",
            *(f"- {note}" for note in notes(comparison)),
            "\n## Where LightSecAgg loses\n",
            _WHY + "\n",
            *(f"- {loss}" for loss in losses(comparison)),
            "\n## The numbers\n",
            *grids,
        ]
    )
