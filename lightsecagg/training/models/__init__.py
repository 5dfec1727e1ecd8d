"""The models by name. Importing this loads torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lightsecagg.errors import ConfigError
from lightsecagg.training.models.cnn import SmallCNN
from lightsecagg.training.models.linear import LogisticRegression
from lightsecagg.training.plugins import call_with_accepted, is_plugin, load_plugin, unknown_name

KEY = "model_args.model"

_MODELS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {"lr": LogisticRegression, "cnn": SmallCNN}

MODELS = tuple(_MODELS)


def make_model(name: str, input_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """Build a model with seeded initial weights; the process's own random generator is left as it was.

    Args:
        name: "lr", "cnn", or ``package.module:name``: a class or function that returns an ``nn.Module`` and
            is passed those of ``input_shape`` and ``num_classes`` it has parameters for.
        input_shape: the shape of one sample.
        num_classes: how many scores the model yields a sample.
        seed: 0 <= seed < 2^64.

    Raises:
        ConfigError: an unknown name, a model that does not fit the samples, or not an ``nn.Module``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_plugin(name):
            model = call_with_accepted(
                load_plugin(name, KEY), input_shape=input_shape, num_classes=num_classes
            )
            if not isinstance(model, nn.Module):
                raise ConfigError(
                    f"{KEY}: {name!r} must give a torch.nn.Module, found {type(model).__name__}"
                )
            return model
        if name not in _MODELS:
            raise unknown_name(KEY, name, MODELS)
        return _MODELS[name](input_shape, num_classes)
