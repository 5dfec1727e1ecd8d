"""FedML's trainer interface: a class written against it runs here with its import line changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class ClientTrainer(ABC):
    """What FedML's users subclass: ``from fedml.core import ClientTrainer`` becomes this module's.

    Attributes:
        model: the ``torch.nn.Module`` that ``model_args.model`` names.
        args: the settings as attributes (``epochs``, ``batch_size``, ``learning_rate``, ``weight_decay``,
            ``client_optimizer`` and those of the configuration file).
        id: 0 unless ``set_id`` was called.
    """

    def __init__(self, model: Any, args: Any) -> None:
        self.model = model
        self.args = args
        self.id = 0

    def set_id(self, trainer_id: int) -> None:
        """Name the trainer."""
        self.id = trainer_id

    @abstractmethod
    def get_model_params(self) -> Any:
        """The model's state dict."""

    @abstractmethod
    def set_model_params(self, model_parameters: Any) -> None:
        """Load a state dict of CPU tensors."""

    def on_before_local_training(self, train_data: Any, device: Any, args: Any) -> None:  # noqa: B027 - a hook
        """Called before every ``train``."""

    @abstractmethod
    def train(self, train_data: Any, device: Any, args: Any) -> Any:
        """Train on a ``DataLoader`` of (x, y) batches; what it returns is not used."""

    def on_after_local_training(self, train_data: Any, device: Any, args: Any) -> None:  # noqa: B027 - a hook
        """Called after every ``train``."""

    def test(self, test_data: Any, device: Any, args: Any) -> Any:  # noqa: B027 - not every trainer tests
        """A dict of ``test_correct``, ``test_total`` and ``test_loss`` (summed over samples), or None."""
