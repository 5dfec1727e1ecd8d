"""Trainers that run PyTorch: our own, and the adapter for classes written against FedML's interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightsecagg.errors import ConfigError
from lightsecagg.training.base import (
    Array,
    Evaluation,
    LocalData,
    State,
    Trainer,
    TrainingStopped,
    TrainResult,
    TrainSettings,
    batches,
)
from lightsecagg.training.fedml import ClientTrainer
from lightsecagg.training.state import require_same_entries, write_atomically

EVALUATION_BATCH = 1024  # samples; bounds memory, does not change the result


def has_gpu() -> bool:
    """Whether there is a GPU that torch can use."""
    return torch.cuda.is_available()


def set_threads(count: int) -> None:
    """How many CPU threads torch uses in this process; call it before the thread that trains starts."""
    torch.set_num_threads(count)


def state_to_arrays(tensors: Mapping[str, torch.Tensor]) -> State:
    """A torch state dict as NumPy arrays, copied; bfloat16, which NumPy lacks, becomes float32."""
    return {name: _to_array(tensor) for name, tensor in tensors.items()}


def state_to_tensors(state: State) -> dict[str, torch.Tensor]:
    """A state as CPU tensors, copied."""
    return {name: torch.from_numpy(np.array(array)) for name, array in state.items()}


def save_pt(path: Path, state: State) -> None:
    """Write a state as a torch file, which ``torch.load`` opens as a state dict, whole or not at all."""
    tensors = state_to_tensors(state)
    write_atomically(path, lambda file: torch.save(tensors, file))


def read_pt(path: Path) -> State:
    """The state in a torch file; nothing but tensors is unpickled.

    Raises:
        ValueError: the file holds no state dict.
        OSError: the file cannot be read.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises its unpickler's errors, RuntimeError and more
        raise ValueError(f"{path} is no torch file of a state dict: {error}") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise ValueError(f"{path} holds no state dict of tensors")
    return state_to_arrays(tensors)


def _to_array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.array(tensor.numpy())


def _to_tensor(array: Array, device: torch.device) -> torch.Tensor:
    """Shares memory with the array where it can; torch warns about arrays it must not write to."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)


def _open_device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device_args: torch cannot use device {str(name)!r}: {error}") from error
    return device


class _SGD:
    """The rule of ``torch.optim.SGD``, whose first use imports torch's compiler: 1.7 s a process."""

    def __init__(self, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        self._parameters = parameters
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay

    def zero_grad(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self._parameters:
            if parameter.grad is not None:
                direction = parameter.grad.add(parameter, alpha=self._weight_decay)
                parameter.add_(direction, alpha=-self._learning_rate)


def _make_optimizer(model: nn.Module, settings: TrainSettings) -> _SGD | torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.client_optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, amsgrad=True)
    return _SGD(parameters, rate, decay)


class TorchTrainer(Trainer):
    """Trains a module by mini-batches of cross entropy; one object a process, not thread-safe.

    ``train`` seeds torch's global generator, for dropout and the like.

    Args:
        model: (n, ...) samples -> (n, num_classes) scores. Moved to the device and used in place.
        device: as torch names it: "cpu", "cuda:0".

    Raises:
        ConfigError: torch cannot use the device.
    """

    def __init__(self, model: nn.Module, device: str | torch.device = "cpu") -> None:
        self._device = _open_device(device)
        self._model = model.to(self._device)

    def get_state(self) -> State:
        return state_to_arrays(self._model.state_dict())

    def set_state(self, state: State) -> None:
        require_same_entries(state, self.get_state())
        self._model.load_state_dict(state_to_tensors(state))

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        torch.manual_seed(settings.seed)
        x, y = _to_tensor(data.x, self._device), _to_tensor(data.y, self._device)
        optimizer = _make_optimizer(self._model, settings)
        last_loss = torch.zeros((), dtype=torch.float64, device="cpu")
        self._model.train()
        for epoch, rows in batches(len(data), settings, should_stop):
            chosen = torch.from_numpy(rows).to(self._device)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self._model(x[chosen]), y[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if epoch == settings.epochs - 1:
                last_loss += loss.detach().cpu() * len(rows)
        return TrainResult(len(data), float(last_loss) / len(data) if len(data) else None)

    def evaluate(self, x: Array, y: Array) -> Evaluation:
        if not len(x):
            return Evaluation(None, None, 0)
        self._model.eval()
        correct, loss = 0, 0.0
        with torch.no_grad():
            for start in range(0, len(x), EVALUATION_BATCH):
                samples = _to_tensor(x[start : start + EVALUATION_BATCH], self._device)
                labels = _to_tensor(y[start : start + EVALUATION_BATCH], self._device)
                scores = self._model(samples)
                correct += int((scores.argmax(dim=1) == labels).sum())
                loss += float(nn.functional.cross_entropy(scores, labels, reduction="sum"))
        return Evaluation(correct / len(x), loss / len(x), len(x))


class FedMLTrainer(Trainer):
    """A FedML ``ClientTrainer`` as one of our trainers; one object a process, not thread-safe.

    Its ``train`` and ``test`` get a ``DataLoader`` of (x, y) batches, and ``args`` with the round's settings.
    It is stopped where it asks for its next batch.

    Args:
        trainer: the user's object.
        device: as torch names it.
        args: the object that the trainer was made with; each ``train`` writes its settings into it.

    Raises:
        ConfigError: torch cannot use the device.
    """

    def __init__(self, trainer: ClientTrainer, device: str | torch.device, args: SimpleNamespace) -> None:
        self._device = _open_device(device)
        self._trainer = trainer
        self._args = args

    def get_state(self) -> State:
        return state_to_arrays(self._trainer.get_model_params())

    def set_state(self, state: State) -> None:
        require_same_entries(state, self.get_state())
        self._trainer.set_model_params(state_to_tensors(state))

    def train(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> TrainResult:
        for name in ("epochs", "batch_size", "learning_rate", "weight_decay", "client_optimizer"):
            setattr(self._args, name, getattr(settings, name))
        torch.manual_seed(settings.seed)
        loader = _StoppableLoader(data, settings, should_stop)
        self._trainer.on_before_local_training(loader, self._device, self._args)
        self._trainer.train(loader, self._device, self._args)
        self._trainer.on_after_local_training(loader, self._device, self._args)
        return TrainResult(len(data), None)

    def evaluate(self, x: Array, y: Array) -> Evaluation:
        cpu = torch.device("cpu")
        samples = TensorDataset(_to_tensor(x, cpu), _to_tensor(y, cpu))
        loader = DataLoader(samples, batch_size=EVALUATION_BATCH)
        metrics = self._trainer.test(loader, self._device, self._args)
        total = metrics.get("test_total", 0) if isinstance(metrics, Mapping) else 0
        if not total:
            return Evaluation(None, None, len(x))
        return Evaluation(
            _share(metrics, "test_correct", total), _share(metrics, "test_loss", total), int(total)
        )


def _share(metrics: Mapping[str, Any], name: str, total: float) -> float | None:
    return float(metrics[name]) / total if name in metrics else None


class _StoppableLoader(DataLoader[tuple[torch.Tensor, ...]]):
    """A shuffled loader whose iteration raises ``TrainingStopped``: the only hold on a foreign loop."""

    def __init__(self, data: LocalData, settings: TrainSettings, should_stop: Callable[[], bool]) -> None:
        cpu = torch.device("cpu")
        super().__init__(
            TensorDataset(_to_tensor(data.x, cpu), _to_tensor(data.y, cpu)),
            batch_size=settings.batch_size,
            shuffle=len(data) > 0,  # torch refuses to shuffle nothing
            generator=torch.Generator().manual_seed(settings.seed),
        )
        self._should_stop = should_stop

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if self._should_stop():
                raise TrainingStopped("stopped before a batch")
            yield batch
