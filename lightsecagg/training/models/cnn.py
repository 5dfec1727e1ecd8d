"""A small convolutional network for small images."""

from __future__ import annotations

import torch
from torch import nn

from lightsecagg.errors import ConfigError

LEAST_SIDE = 4  # two poolings halve the image twice
CHANNELS = (16, 32)
HIDDEN = 64


class SmallCNN(nn.Module):
    """Two 3 x 3 convolutions with pooling, two linear layers: 13,706 parameters on digits, 105,866 on MNIST.

    Raises:
        ConfigError: samples are not (channels, height, width) with both sides at least 4.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < LEAST_SIDE:
            raise ConfigError(
                f"model_args.model: 'cnn' wants images (channels, height, width) of at least "
                f"{LEAST_SIDE} x {LEAST_SIDE}, found samples of shape {input_shape}; 'lr' takes any"
            )
        channels, height, width = input_shape
        first, second = CHANNELS
        self.layers = nn.Sequential(
            nn.Conv2d(channels, first, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (height // 4) * (width // 4), HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, num_classes),
        )
        # torch's own initial weights shrink the signal from layer to layer, which costs several rounds; these
        # (He et al., 2015) keep it.
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_uniform_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels, height, width) -> (n, num_classes) scores."""
        scores: torch.Tensor = self.layers(x)
        return scores
