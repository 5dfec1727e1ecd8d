"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightsecagg.errors import ConfigError
from lightsecagg.training.base import Dataset
from lightsecagg.training.data.digits import load_digits
from lightsecagg.training.data.mnist import load_mnist
from lightsecagg.training.plugins import call_with_accepted, is_plugin, load_plugin, unknown_name

KEY = "data_args.dataset"

_LOADERS: dict[str, Callable[[Path], Dataset]] = {"digits": lambda _: load_digits(), "mnist": load_mnist}

DATASETS = tuple(_LOADERS)


def load_dataset(name: str, cache_dir: Path, seed: int) -> Dataset:
    """Load a data set.

    Args:
        name: "digits" (inside scikit-learn), "mnist" (files in ``cache_dir``), or ``package.module:name``: a
            callable that returns a ``Dataset`` and is passed those of ``cache_dir`` and ``seed`` it has
            parameters for.
        cache_dir: where data sets lie; ~ is the home folder.
        seed: for users' data sets. The built-in ones ignore it: server and clients must split alike.

    Raises:
        ConfigError: an unknown name, a missing library, or files that are missing or broken, by name.
    """
    cache_dir = cache_dir.expanduser()
    if is_plugin(name):
        dataset = call_with_accepted(load_plugin(name, KEY), cache_dir=cache_dir, seed=seed)
        if not isinstance(dataset, Dataset):
            raise ConfigError(f"{KEY}: {name!r} must return a Dataset, found {type(dataset).__name__}")
        return dataset
    if name not in _LOADERS:
        raise unknown_name(KEY, name, DATASETS)
    return _LOADERS[name](cache_dir)
