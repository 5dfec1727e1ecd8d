"""Reads a configuration file and overrides into ``Settings``, or says what is wrong and what was wanted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lightsecagg.errors import ConfigError
from lightsecagg.settings import fedml, fedml_files
from lightsecagg.settings.checks import ConflictError, Problem
from lightsecagg.settings.schema import Settings
from lightsecagg.settings.source import describe, parse, read
from lightsecagg.settings.types import WANTED

_SECRET_KEYS = frozenset({"wandb_key", "password"})

# pydantic's error types that our fields can produce, in words for people; {} is filled from the error.
_WANTED_WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (in quotes, if it looks like something else)",
    "string_too_short": "text",
    "finite_number": "a finite number",
    "model_type": "keys with values below it",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    WANTED: "{text}",
}


def load(path: Path, overrides: Sequence[str] = ()) -> tuple[Settings, list[str]]:
    """Read the file at ``path`` and lay ``overrides`` (``section.key=value``, the value as YAML) over it.

    Returns:
        The settings, and lines to be shown once: unknown keys, and what of FedML's file is not served.

    Raises:
        ConfigError: for each wrong value one line with file, key path, what was wanted and what was found.
    """
    raw = read(path)
    overridden = {_override(raw, text) for text in overrides}
    connection_notices = fedml_files.lay_under(raw, path.parent)
    unknown: list[tuple[str, str]] = []
    known = _known_part(Settings, raw, "", unknown)
    if misspelt := [
        f"--set {key}: unknown key{hint}" for key, hint in unknown if _is_overridden(key, overridden)
    ]:
        raise ConfigError("\n".join(misspelt))  # a file may be FedML's; these words are meant for us
    try:
        settings = Settings.model_validate(known)
    except ValidationError as error:
        problems = tuple(_problem(detail) for detail in error.errors(include_url=False))
    except ConflictError as conflict:
        problems = conflict.problems
    else:
        lines = [f"{path}: {key}: unknown key, ignored{hint}" for key, hint in unknown]
        return settings, lines + connection_notices + fedml.notices(settings)
    # Raised outside the handlers: pydantic's error holds the values, secrets among them, and stays behind.
    raise ConfigError("\n".join(f"{_origin(path, problem.key, overridden)}{problem}" for problem in problems))


def _is_overridden(key: str, overridden: set[str]) -> bool:
    return any(f"{key}.".startswith(f"{given}.") or given.startswith(f"{key}.") for given in overridden)


def _origin(path: Path, key: str, overridden: set[str]) -> str:
    return "--set " if _is_overridden(key, overridden) else f"{path}: "


def _override(raw: dict[Any, Any], text: str) -> str:
    """Write one override into ``raw``; returns the key path."""
    key_path, equals, value = text.partition("=")
    key_path = key_path.strip()
    *parents, key = key_path.split(".")
    if not equals or not parents or not all((*parents, key)):
        # Only the part that looks like a key is repeated: the rest may be a secret.
        found = re.match(r"[\w.\-]*", text.strip())
        raise ConfigError(f"--set: wanted section.key=value, found {found.group() if found else ''!r}")
    target = raw
    for depth, parent in enumerate(parents, start=1):
        if target.get(parent) is None:
            target[parent] = {}
        target = target[parent]
        if not isinstance(target, dict):
            below = ".".join(parents[:depth])
            raise ConfigError(f"--set {key_path}: wanted a section at {below}, found {describe(target)}")
    target[key] = parse(value, f"--set {key_path}")
    return key_path


def _known_part(
    model: type[BaseModel], raw: Mapping[Any, Any], prefix: str, unknown: list[tuple[str, str]]
) -> dict[str, Any]:
    """``raw`` without the keys that ``model`` lacks; those go to ``unknown``, with a hint."""
    known: dict[str, Any] = {}
    for key, value in raw.items():
        field = model.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            unknown.append((f"{prefix}{key}", _hint(model, str(key), prefix)))
            continue
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            if value is None:  # a section whose keys are all commented out
                continue
            if isinstance(value, dict):
                known[key] = _known_part(section, value, f"{prefix}{key}.", unknown)
                continue
        known[key] = value
    return known


def _hint(model: type[BaseModel], key: str, prefix: str) -> str:
    everywhere = _key_paths(Settings, "")
    siblings = (
        [path for path in everywhere if path.startswith(prefix)] if prefix else list(model.model_fields)
    )
    nearest = (
        _nearest(f"{prefix}{key}", siblings, prefix)
        or next((path for path in everywhere if path.rpartition(".")[2] == key), None)
        or _nearest(f"{prefix}{key}", everywhere, "")
    )
    return f"; the nearest known key is {nearest}" if nearest else ""


def _nearest(path: str, known: Sequence[str], prefix: str) -> str | None:
    """The known path most like ``path``; the prefix that all share does not count towards likeness."""
    tails = {candidate.removeprefix(prefix).lower(): candidate for candidate in known}
    found = get_close_matches(path.removeprefix(prefix).lower().replace("-", "_"), list(tails), n=1)
    return tails[found[0]] if found else None


def _key_paths(model: type[BaseModel], prefix: str) -> list[str]:
    paths: list[str] = []
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            paths += _key_paths(section, f"{prefix}{name}.")
        else:
            paths.append(f"{prefix}{name}")
    return paths


def _problem(detail: ErrorDetails) -> Problem:
    key = ".".join(str(part) for part in detail["loc"])
    template = _WANTED_WORDS.get(detail["type"], detail["msg"])
    context = {name: _short(value) for name, value in detail.get("ctx", {}).items()}
    wanted = template.format(**context) if detail["type"] in _WANTED_WORDS else template
    if detail["loc"][-1] in _SECRET_KEYS:
        found = "<secret>"
    elif detail["type"] == "model_type":  # a misplaced value: it may be the section's secret
        found = "a list" if isinstance(detail["input"], list) else "a single value"
    else:
        found = describe(detail["input"])
    return Problem(key, wanted, found)


def _short(bound: object) -> object:
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound
