"""The value types of the settings: what one key may hold, each with the words that say what was wanted."""

from __future__ import annotations

import contextlib
import json
import re
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

WANTED = "wanted"  # the error type whose message is exactly the text after "wanted"

_FIELD_LIMIT = 2**32
_WEIGHT_LIMIT = 2**16

_NUMBERS_OF_STALENESS = {"constant": 0, "polynomial": 1, "hinge": 2}
_STALENESS = re.compile(
    r" *(constant|polynomial|hinge)"
    r"(?: *\( *([0-9]{1,9}(?:\.[0-9]{1,9})?) *(?:, *([0-9]{1,9}) *)?\))? *"
)


def _wanted(text: str) -> PydanticCustomError:
    # The message is a template of pydantic's, so what comes from us goes in as a value.
    return PydanticCustomError(WANTED, "{text}", {"text": text})


def _prime_number(value: Any) -> Any:
    # Only the range is checked here: whether it is prime, and whether the sum fits, the core decides.
    if value == "auto" or (type(value) is int and 3 <= value < _FIELD_LIMIT):
        return value
    raise _wanted(f"'auto', or a prime number below {_FIELD_LIMIT} in digits")


def _path(value: Any) -> Any:
    if isinstance(value, str) and value:
        return Path(value).expanduser()
    if isinstance(value, Path):
        return value
    raise _wanted("a path")


def _name_of_rank(value: Any) -> Any:
    if isinstance(value, str) and "{rank}" in value:
        return value
    raise _wanted("a name that holds {rank}, such as client-{rank}")


def _ranks(value: Any) -> Any:
    if isinstance(value, str):  # FedML's files hold "[]" and "[1, 2]" as text
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    ranks = tuple(value) if isinstance(value, list | tuple) else None
    if (
        ranks is None
        or any(type(rank) is not int or rank < 1 for rank in ranks)
        or len(set(ranks)) < len(ranks)
    ):
        raise _wanted("a list of distinct client ranks from 1, or an empty one")
    return ranks


def _staleness(value: Any) -> Any:
    # Only the form is checked here, and written in one way so that equal settings compare equal; what the
    # function is, the core knows.
    found = _STALENESS.fullmatch(value) if isinstance(value, str) else None
    if found is not None:
        kind, *given = found.groups()
        numbers = [Decimal(number) for number in given if number is not None]
        if len(numbers) == _NUMBERS_OF_STALENESS[kind] and all(number > 0 for number in numbers[:1]):
            written = ", ".join(f"{number.normalize():f}" for number in numbers)
            return f"{kind}({written})" if numbers else kind
    raise _wanted(
        "'constant', 'polynomial(a)' with a > 0, or 'hinge(a, b)' with a > 0 and a whole number b ≥ 0, "
        "such as 'polynomial(0.5)' or 'hinge(10, 4)'"
    )


def _weights(value: Any) -> Any:
    weights = tuple(value) if isinstance(value, list | tuple) else ()
    if (
        not weights
        or any(type(weight) is not int or not 1 <= weight <= _WEIGHT_LIMIT for weight in weights)
        or any(low >= high for low, high in pairwise(weights))
    ):
        raise _wanted(
            f"a list of distinct whole numbers from 1 to {_WEIGHT_LIMIT}, the smallest first, "
            "such as [1, 2, 4]"
        )
    return weights


def _served(*values: object, wanted: str) -> BeforeValidator:
    """Takes exactly ``values``; anything else is refused with words that say why the list is short."""

    def check(value: Any) -> Any:
        if any(type(value) is type(served) and value == served for served in values):
            return value
        raise _wanted(wanted)

    return BeforeValidator(check)


Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Port = Annotated[int, Field(ge=0, le=65535)]
Name = Annotated[str, Field(min_length=1)]

FilePath = Annotated[Path, BeforeValidator(_path)]
NameOfRank = Annotated[str, BeforeValidator(_name_of_rank)]
Ranks = Annotated[tuple[int, ...], BeforeValidator(_ranks)]
PrimeNumber = Annotated[Literal["auto"] | int, BeforeValidator(_prime_number)]
StalenessText = Annotated[str, BeforeValidator(_staleness)]
StalenessValues = Annotated[tuple[int, ...], BeforeValidator(_weights)]
ExtraAnswers = Annotated[Literal[0], _served(0, wanted="0 (robust decoding is not in this version)")]
SecureMethod = Annotated[
    Literal["lightsecagg"],
    _served("lightsecagg", wanted="'lightsecagg' (FedML's other methods are not served)"),
]
Optimizer = Annotated[
    Literal["LSA", "FedAvg"],
    _served("LSA", "FedAvg", wanted="'LSA' (secure) or 'FedAvg' (the same run without masks)"),
]
