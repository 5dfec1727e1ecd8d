"""How much a late update weighs: the staleness functions, the integer weights they are rounded to, and what
such weights reveal.

An update that was trained on version v of the model and is added at version t has staleness τ = t − v ≥ 0.
Sources: Xie, Koyejo, Gupta, "Asynchronous federated optimization", 2019 (the functions); Nguyen et al.,
"Federated learning with buffered asynchronous aggregation", AISTATS 2022 (their use in a buffer).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

from lightsecagg.errors import ParameterError

MAX_STALENESS = 1024
"""Largest ``max_staleness``: a table of weights stays a short list, whatever a configuration says."""

MAX_STALENESS_WEIGHT = 2**16
"""Largest integer weight: each bit of it costs the field one bit of room."""

_FORM = re.compile(
    r" *(constant|polynomial|hinge)"
    r"(?: *\( *([0-9]{1,9}(?:\.[0-9]{1,9})?) *(?:, *([0-9]{1,9}) *)?\))? *"
)
_WANTED = (
    "'constant', 'polynomial(a)' with a > 0, or 'hinge(a, b)' with a > 0 and a whole number b ≥ 0, "
    "such as 'polynomial(0.5)' or 'hinge(10, 4)'"
)


@dataclass(frozen=True)
class Constant:
    """s(τ) = 1: a late update weighs what a fresh one does."""

    def factor(self, _staleness: int) -> float:
        """s(τ), 1."""
        return 1.0


@dataclass(frozen=True)
class Polynomial:
    """s(τ) = (1 + τ)^−a.

    Raises:
        ParameterError: a is not a finite number above 0.
    """

    a: float

    def __post_init__(self) -> None:
        _check_slope(self.a)

    def factor(self, staleness: int) -> float:
        """s(τ), in 0..1 and 1 at τ = 0."""
        return float((1.0 + staleness) ** -self.a)


@dataclass(frozen=True)
class Hinge:
    """s(τ) = 1 up to τ = b, and 1 / (a·(τ − b) + 1) beyond.

    Raises:
        ParameterError: a is not a finite number above 0, or b is below 0.
    """

    a: float
    b: int

    def __post_init__(self) -> None:
        _check_slope(self.a)
        if self.b < 0:
            raise ParameterError(f"staleness: wanted {_WANTED}, found b = {self.b}")

    def factor(self, staleness: int) -> float:
        """s(τ), in 0..1 and 1 at τ = 0."""
        return 1.0 if staleness <= self.b else 1.0 / (self.a * (staleness - self.b) + 1.0)


Staleness = Constant | Polynomial | Hinge


def _check_slope(a: float) -> None:
    if not (a > 0 and math.isfinite(a)):
        raise ParameterError(f"staleness: wanted {_WANTED}, found a = {a}")


def parse_staleness(text: str) -> Staleness:
    """The function that ``text`` names: ``constant``, ``polynomial(0.5)``, ``hinge(10, 4)``; spaces may stand
    around words, numbers and signs.

    Raises:
        ParameterError: it names none.
    """
    found = _FORM.fullmatch(text)
    match found.groups() if found else None:
        case ("constant", None, None):
            return Constant()
        case ("polynomial", str(a), None):
            return Polynomial(float(a))
        case ("hinge", str(a), str(b)):
            return Hinge(float(a), int(b))
    raise ParameterError(f"staleness: wanted {_WANTED}, found {text[:80]!r}")


def weight_table(staleness: Staleness, values: Sequence[int], max_staleness: int) -> tuple[int, ...]:
    """The integer weights of the stalenesses 0..``max_staleness``: s(τ)·max(values), rounded to the nearest
    of ``values``, ties to the smaller; all ones for ``Constant``, which so wastes no room in the field.

    The table, not the function, is what server and clients compare and compute with: no two machines need to
    agree about a float.

    Args:
        staleness: s, with s(0) = 1.
        values: the weights that may occur, ascending, distinct, in 1..``MAX_STALENESS_WEIGHT``.
        max_staleness: the staleness past which an update is refused, 0..``MAX_STALENESS``.

    Raises:
        ParameterError: ``values`` or ``max_staleness`` are not of that kind.
    """
    ascending = all(low < high for low, high in pairwise(values))
    if not values or not ascending or not 1 <= values[0] <= values[-1] <= MAX_STALENESS_WEIGHT:
        raise ParameterError(
            f"staleness_values: wanted distinct whole numbers from 1 to {MAX_STALENESS_WEIGHT}, the smallest "
            f"first, such as 1, 2, 4, found {', '.join(map(str, values)) or 'none'}"
        )
    if not 0 <= max_staleness <= MAX_STALENESS:
        raise ParameterError(f"max_staleness: wanted 0 to {MAX_STALENESS}, found {max_staleness}")
    if isinstance(staleness, Constant):
        return (1,) * (max_staleness + 1)
    return tuple(_nearest(staleness.factor(late) * values[-1], values) for late in range(max_staleness + 1))


def _nearest(wanted: float, values: Sequence[int]) -> int:
    # Rounded first: a tie stays one although pow differs in its last bit from one machine to the next.
    wanted = round(wanted, 6)
    return min(values, key=lambda value: (abs(value - wanted), value))


def reveals(table: Sequence[int], privacy_threshold: int, strict: bool) -> list[str]:
    """What the weights of ``table`` may show the server of one update, in words for people.

    The server learns the exact integer Σ w·x. Beside updates whose weights have the common divisor g, a lone
    update of weight w is known modulo g / gcd(g, w). That is largest where all others have one weight v: g
    divides v, and then g / gcd(g, w) divides v / gcd(v, w).

    Args:
        table: the weights that may occur, ≥ 1, in any order and number.
        privacy_threshold: T; colluders know their own updates and take them out of the sum.
        strict: the clients demand T + 2 distinct clients for each weight in a list (``strict_weights``), so
            no honest update is alone with its weight.

    Returns:
        The worst case, one line; nothing where there is one weight only, or with ``strict``.
    """
    weights = sorted(set(table))
    if strict or len(weights) < 2:
        return []
    modulus, lone, others = max(
        ((v // math.gcd(v, w), w, v) for w, v in permutations(weights, 2)), key=lambda case: case[0]
    )
    bits = modulus.bit_length() - 1
    lowest = f" (the lowest {'bit' if bits == 1 else f'{bits} bits'})" if modulus == 2**bits else ""
    named = ", ".join(map(str, weights)) if len(weights) <= 8 else f"{weights[0]} to {weights[-1]}"
    return [
        f"staleness weights {named}: where all honest clients of a list but one have weight {others} and "
        f"that one has {lone}, the server learns its update and its sample count modulo {modulus}{lowest}; "
        f"strict_weights demands T + 2 = {privacy_threshold + 2} clients of each weight"
    ]
