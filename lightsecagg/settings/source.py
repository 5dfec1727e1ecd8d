"""YAML text to plain mappings: one document, no key twice, no Python objects, no secret in an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lightsecagg.errors import ConfigError

# A file of settings has a few kilobytes; the parser is slow, and a data file given by mistake is large.
_MAX_BYTES = 2**20


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses repeated keys and reads ``1e-3`` as the number it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"the key {key.value!r} stands here a second time", key.start_mark
                        )
                    seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML follows, takes 1e-3 for text because it has no dot; YAML 1.2 and people do not.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str, origin: str) -> Any:
    """The value that ``text`` holds.

    Raises:
        ConfigError: it is not YAML; the message has the place and never the line, which may hold a key.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or error.context or "unreadable"
    except yaml.YAMLError:
        place, problem = "", "a character that YAML does not allow"
    except (ValueError, RecursionError):
        # A value that looks like a date but is none, or brackets nested without end.
        place, problem = "", "a value that cannot be read"
    raise ConfigError(f"{origin}{place}: wanted YAML, found: {problem}")


def read(path: Path) -> dict[Any, Any]:
    """The sections of the file at ``path``.

    Raises:
        ConfigError: it cannot be read, is not YAML, or does not hold sections.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: wanted a configuration file, found more than {_MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: wanted a configuration file, found no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: wanted a configuration file, found: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: wanted text in UTF-8, found other bytes") from None
    value = parse(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path}: wanted sections such as 'train_args:' with keys below them, found {describe(value)}"
        )
    return value


def describe(value: object) -> str:
    """What was found, in words fit for an error: scalars as they are, containers by kind only."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case str() if len(value) > 80:
            return f"{value[:80]!r}…"
    return repr(value) if isinstance(value, str | int | float) else str(value)[:80]
