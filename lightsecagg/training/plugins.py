"""Names like ``package.module:name``: how a user's own model, data set or trainer is found and called."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from lightsecagg.errors import ConfigError

TRAIN_EXTRA = 'pip install "lightsecagg[train]"'


def is_plugin(name: str) -> bool:
    """Whether a name points into a user's module."""
    return ":" in name


def load_plugin(spec: str, key: str) -> Callable[..., Any]:
    """The callable that ``package.module:name`` points to.

    Args:
        spec: the setting's value.
        key: the setting, for messages, as "model_args.model".

    Raises:
        ConfigError: no such module, no such name in it, not callable, or importing it failed.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{key}: wanted package.module:name, found {spec!r}")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigError(
                f"{key}: {spec!r}: there is no module {error.name!r} on the Python path; "
                "put its folder into PYTHONPATH or install it"
            ) from None
        raise ConfigError(f"{key}: importing {module_name!r} failed: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"{key}: {spec!r}: {error}") from error
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ConfigError(f"{key}: importing {module_name!r} failed: {error!r}") from error
    if not callable(found):
        raise ConfigError(f"{key}: {spec!r} must be a class or a function, found {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def call_with_accepted(function: Callable[..., Any], **offered: object) -> object:
    """Call with those of the offered keyword arguments that the function's signature names."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return function(**offered)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return function(
        **{
            name: value
            for name, value in offered.items()
            if name in parameters and parameters[name].kind in by_name
        }
    )


def import_extra(module: str, needed_by: str) -> ModuleType:
    """Import a library of the ``train`` extra, or a module of ours that needs one.

    Raises:
        ConfigError: a library is missing, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = (error.name or module).partition(".")[0]
        if library == "lightsecagg":
            raise
        raise ConfigError(f"{needed_by} needs {library}: {TRAIN_EXTRA}") from error


def unknown_name(key: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is neither built in nor of the form ``package.module:name``."""
    return ConfigError(
        f"{key}: wanted one of {', '.join(sorted(known))}, or package.module:name, found {name!r}"
    )
