"""Trainers and model files by name; torch is loaded only when what is asked for needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightsecagg.errors import ConfigError
from lightsecagg.training import state as npz
from lightsecagg.training.base import Dataset, State, Trainer
from lightsecagg.training.fedml import ClientTrainer
from lightsecagg.training.numpy_trainer import NumpySoftmax
from lightsecagg.training.plugins import import_extra, is_plugin, load_plugin, unknown_name

KEY = "model_args.trainer"

TRAINERS = ("torch", "numpy")

TORCH_SUFFIXES = frozenset({".pt", ".pth"})


def make_trainer(
    trainer: str | None,
    model: str,
    dataset: Dataset,
    seed: int,
    *,
    device: str = "cpu",
    args: Mapping[str, object] | None = None,
) -> Trainer:
    """Build the trainer of one process.

    Args:
        trainer: None or "torch" (our PyTorch trainer), "numpy" (softmax regression without torch), or
            ``package.module:name``: a subclass of ``training.fedml.ClientTrainer``, made with (model, args),
            or a class or function that is called with (dataset, seed) and gives a ``Trainer``.
        model: as in ``training.models``; "numpy" has "lr" only, users' own trainers may ignore it.
        dataset: gives the shape of a sample and the number of classes.
        seed: 0 <= seed < 2^64, of the initial weights.
        device: as torch names it.
        args: further attributes of the ``args`` object that FedML's classes get.

    Raises:
        ConfigError: an unknown name, a missing library, or a model that does not fit the data set.
    """
    made: object
    if trainer is None or trainer == "torch":
        modules = import_extra("lightsecagg.training.torch", f"{KEY} 'torch'")
        made = modules.TorchTrainer(_torch_model(model, dataset, seed), device)
    elif trainer == "numpy":
        if model != "lr":
            raise ConfigError(f"model_args.model: {KEY} 'numpy' trains 'lr' only, found {model!r}")
        made = NumpySoftmax(prod(dataset.input_shape), dataset.num_classes)
    elif is_plugin(trainer):
        plugin = load_plugin(trainer, KEY)
        try:
            made = _from_plugin(plugin, trainer, model, dataset, seed, device, args or {})
        except ConfigError:
            raise
        except Exception as error:  # a user's own code may raise anything
            raise ConfigError(f"{KEY}: making {trainer!r} failed: {error!r}") from error
    else:
        raise unknown_name(KEY, trainer, TRAINERS)
    if not isinstance(made, Trainer):
        raise ConfigError(f"{KEY}: {trainer!r} must give a Trainer, found {type(made).__name__}")
    return made


def _from_plugin(
    plugin: Callable[..., Any],
    trainer: str,
    model: str,
    dataset: Dataset,
    seed: int,
    device: str,
    args: Mapping[str, object],
) -> object:
    if not _is_for_fedml(plugin):
        return plugin(dataset, seed)
    modules = import_extra("lightsecagg.training.torch", f"{KEY} {trainer!r}")
    namespace = SimpleNamespace(**args)
    inner = plugin(_torch_model(model, dataset, seed), namespace)
    return modules.FedMLTrainer(inner, device, namespace)


def _is_for_fedml(plugin: object) -> bool:
    return isinstance(plugin, type) and issubclass(plugin, ClientTrainer)


def _torch_model(model: str, dataset: Dataset, seed: int) -> object:
    models = import_extra("lightsecagg.training.models", f"model_args.model {model!r}")
    made: object = models.make_model(model, dataset.input_shape, dataset.num_classes, seed)
    return made


def set_threads(count: int) -> None:
    """How many CPU threads torch uses; nothing in a process that has not loaded it."""
    if "torch" in sys.modules:
        import_extra("lightsecagg.training.torch", "set_threads").set_threads(count)


def has_gpu() -> bool:
    """Whether torch is installed and finds a GPU."""
    return find_spec("torch") is not None and bool(
        import_extra("lightsecagg.training.torch", "has_gpu").has_gpu()
    )


def save_model(path: Path, state: State) -> None:
    """Write a model file atomically: a torch state dict if its name ends in .pt or .pth, else NumPy's .npz.

    Raises:
        ConfigError: the name asks for torch, which is not installed.
        UpdateError: an entry has a dtype that no state may have.
        OSError: the file cannot be written; what stood there before still does.
    """
    if path.suffix in TORCH_SUFFIXES:
        import_extra("lightsecagg.training.torch", f"the model file {path}").save_pt(path, state)
    else:
        npz.save(path, state)


def read_model(path: Path) -> State:
    """The state that ``save_model`` wrote.

    Raises:
        ConfigError: the name asks for torch, which is not installed.
        ValueError: the file holds no state.
        OSError: the file cannot be read.
    """
    if path.suffix in TORCH_SUFFIXES:
        state: State = import_extra("lightsecagg.training.torch", f"the model file {path}").read_pt(path)
        return state
    return npz.read(path)
