"""The PyTorch trainer and its models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightsecagg.errors import ConfigError, UpdateError
from lightsecagg.training.base import Dataset, Evaluation, LocalData, TrainingStopped
from lightsecagg.training.models import make_model
from lightsecagg.training.numpy_trainer import NumpySoftmax
from lightsecagg.training.state import add_delta, delta, dump, layout_of, load
from lightsecagg.training.torch import TorchTrainer, read_pt, save_pt, set_threads


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    set_threads(1)


def digits_model(name: str, seed: int = 0) -> TorchTrainer:
    return TorchTrainer(make_model(name, (1, 8, 8), 10, seed))


class WithBuffers(nn.Module):
    """A model with integer buffers, a frozen parameter and half-width weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.frozen = nn.Parameter(torch.ones(64), requires_grad=False)
        self.out = nn.Linear(64, 10)
        self.coarse = nn.Parameter(torch.ones(10, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(x.flatten(1)) * self.frozen) * self.coarse.float()


@pytest.mark.parametrize("model", ["lr", "cnn"])
def test_built_in_models_learn_the_digits(digits: Dataset, local: LocalData, settings, model: str) -> None:
    trainer = digits_model(model)
    before = trainer.evaluate(digits.test_x, digits.test_y)
    result = trainer.train(local, settings(epochs=4), lambda: False)
    after = trainer.evaluate(digits.test_x, digits.test_y)
    assert before.accuracy < 0.4
    assert after.accuracy > 0.88
    assert (after.num_samples, result.num_samples) == (359, 1438)
    assert after.loss < result.loss + 0.2 < before.loss


@pytest.mark.parametrize(
    "changes", [{"weight_decay": 0.05}, {"client_optimizer": "adam", "learning_rate": 0.01}]
)
def test_torch_and_numpy_train_the_same_regression(
    digits: Dataset, local: LocalData, settings, changes: dict[str, Any]
) -> None:
    trainers = digits_model("lr"), NumpySoftmax(64, 10)
    trainers[1].set_state(trainers[0].get_state())
    results = [trainer.train(local, settings(epochs=2, **changes), lambda: False) for trainer in trainers]
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-4)
    for name, array in trainers[0].get_state().items():
        np.testing.assert_allclose(array, trainers[1].get_state()[name], atol=2e-4)
    evaluations = [trainer.evaluate(digits.test_x, digits.test_y) for trainer in trainers]
    assert evaluations[0].accuracy == pytest.approx(evaluations[1].accuracy, abs=0.005)
    assert evaluations[0].loss == pytest.approx(evaluations[1].loss, rel=1e-4)


def test_plain_sgd_takes_the_steps_of_torchs(local: LocalData, settings) -> None:
    few = LocalData(local.x[:10], local.y[:10])
    trainer, model = digits_model("lr"), make_model("lr", (1, 8, 8), 10, 0)
    trainer.train(few, settings(weight_decay=0.1, epochs=3, batch_size=10), lambda: False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(few.x)), torch.from_numpy(few.y)).backward()
        optimizer.step()
    for name, array in trainer.get_state().items():
        np.testing.assert_allclose(array, model.state_dict()[name].numpy(), atol=1e-6)


@pytest.mark.parametrize("model", ["lr", "cnn"])
def test_the_same_seed_gives_the_same_model(local: LocalData, settings, model: str) -> None:
    few = LocalData(local.x[:200], local.y[:200])

    def trained(seed: int) -> bytes:
        trainer = digits_model(model)
        trainer.train(few, settings(seed=seed), lambda: False)
        return dump(trainer.get_state())

    assert trained(1) == trained(1)
    assert trained(1) != trained(2)


def test_dropout_follows_the_seed(local: LocalData, settings) -> None:
    def trained() -> bytes:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5))
        torch.manual_seed(int.from_bytes(os.urandom(4), "big"))
        trainer = TorchTrainer(model)
        trainer.train(LocalData(local.x[:50], local.y[:50]), settings(), lambda: False)
        return dump(trainer.get_state())

    assert trained() == trained()


def test_training_stops_between_batches_when_asked(local: LocalData, settings, stop_before_batch) -> None:
    stopped, once = digits_model("lr"), digits_model("lr")
    with pytest.raises(TrainingStopped):
        stopped.train(local, settings(), stop_before_batch(1))
    first = np.random.default_rng(7).permutation(1438)[:10]
    once.train(LocalData(local.x[first], local.y[first]), settings(batch_size=10), lambda: False)
    for name, array in stopped.get_state().items():  # exactly one step was taken
        np.testing.assert_allclose(array, once.get_state()[name], atol=1e-6)


def test_buffers_travel_and_integers_stay_the_servers(local: LocalData, settings) -> None:
    server, client = TorchTrainer(WithBuffers()), TorchTrainer(WithBuffers())
    start = load(dump(server.get_state()))
    assert {name: array.dtype.name for name, array in start.items() if array.dtype != np.float32} == {
        "norm.num_batches_tracked": "int64"
    }
    assert start["norm.num_batches_tracked"].shape == ()
    client.set_state(start)
    client.train(LocalData(local.x[:100], local.y[:100]), settings(), lambda: False)
    trained = client.get_state()
    assert trained["norm.num_batches_tracked"] == 10
    assert np.array_equal(trained["frozen"], start["frozen"])
    server.set_state(add_delta(start, delta(trained, start), layout_of(start)))
    moved = server.get_state()
    assert moved["norm.num_batches_tracked"] == 0
    np.testing.assert_allclose(moved["norm.running_var"], trained["norm.running_var"], atol=1e-6)
    np.testing.assert_allclose(moved["coarse"], trained["coarse"], atol=2**-7)  # bfloat16 rounds
    assert np.abs(trained["coarse"] - 1).max() > 0


def test_evaluation_uses_running_statistics_and_changes_nothing(digits: Dataset) -> None:
    trainer = TorchTrainer(WithBuffers())
    before = dump(trainer.get_state())
    whole = trainer.evaluate(digits.test_x, digits.test_y)
    one = trainer.evaluate(
        digits.test_x[:1], digits.test_y[:1]
    )  # in training mode BatchNorm refuses one sample
    assert one.num_samples == 1
    assert dump(trainer.get_state()) == before
    assert trainer.evaluate(digits.test_x, digits.test_y) == whole


def test_evaluation_in_pieces_is_evaluation_of_the_whole(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = digits_model("lr")
    whole = trainer.evaluate(digits.test_x, digits.test_y)
    monkeypatch.setattr("lightsecagg.training.torch.EVALUATION_BATCH", 50)
    pieces = trainer.evaluate(digits.test_x, digits.test_y)
    assert pieces.accuracy == whole.accuracy
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-5)


def test_without_samples_nothing_changes(settings) -> None:
    trainer = digits_model("cnn")
    before = dump(trainer.get_state())
    empty_x, empty_y = np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, np.int64)
    result = trainer.train(LocalData(empty_x, empty_y), settings(), lambda: False)
    assert (result.num_samples, result.loss) == (0, None)
    assert trainer.evaluate(empty_x, empty_y) == Evaluation(None, None, 0)
    assert dump(trainer.get_state()) == before


def test_states_are_copied_in_and_out() -> None:
    trainer = digits_model("lr")
    state = trainer.get_state()
    before = state["linear.bias"].copy()
    state["linear.bias"] += 1
    assert np.array_equal(trainer.get_state()["linear.bias"], before)
    trainer.set_state(state)
    state["linear.bias"] += 1
    assert np.array_equal(trainer.get_state()["linear.bias"], before + 1)


def test_read_only_arrays_are_fine(digits: Dataset, settings) -> None:
    x, y = digits.train_x[:20].copy(), digits.train_y[:20].copy()
    x.flags.writeable = y.flags.writeable = False
    trainer = digits_model("lr")
    trainer.train(LocalData(x, y), settings(), lambda: False)
    assert trainer.evaluate(x, y).num_samples == 20


def test_a_state_of_another_model_is_refused() -> None:
    with pytest.raises(UpdateError, match="missing layers"):
        digits_model("cnn").set_state(digits_model("lr").get_state())


def test_a_device_that_torch_lacks_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="device_args: torch cannot use device 'nonsense'"):
        TorchTrainer(make_model("lr", (4,), 2, 0), "nonsense")


# --- models


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        ("lr", (1, 28, 28), 7850),
        ("lr", (1, 8, 8), 650),
        ("cnn", (1, 8, 8), 13706),
        ("cnn", (1, 28, 28), 105866),
    ],
)
def test_models_have_the_sizes_their_documentation_says(
    model: str, shape: tuple[int, ...], count: int
) -> None:
    made = make_model(model, shape, 10, 0)
    assert sum(parameter.numel() for parameter in made.parameters()) == count
    assert made(torch.zeros(3, *shape)).shape == (3, 10)


def test_initial_weights_follow_the_seed_and_leave_the_global_generator() -> None:
    def weights(seed: int) -> bytes:
        return dump(digits_model("cnn", seed).get_state())

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert weights(5) == weights(5)
    assert weights(5) != weights(6)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("shape", [(64,), (1, 3, 8), (1, 8, 3)])
def test_a_cnn_on_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"'cnn' wants images .* found samples of shape"):
        make_model("cnn", shape, 10, 0)


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"model_args.model: wanted one of cnn, lr, or package.*found 'resnet'"
    ):
        make_model("resnet", (1, 8, 8), 10, 0)


def test_a_users_model_is_made_with_what_it_asks_for(user_module) -> None:
    user_module(
        "own_models",
        "from torch import nn\n"
        "class Fixed(nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(3, 2)\n"
        "def fitted(num_classes, input_shape):\n"
        "    return nn.Linear(input_shape[0], num_classes)\n"
        "def wrong(**everything):\n"
        "    return sorted(everything)\n",
    )
    assert make_model("own_models:Fixed", (5,), 4, 0).weight.shape == (2, 3)
    assert make_model("own_models:fitted", (5,), 4, 0).weight.shape == (4, 5)
    with pytest.raises(ConfigError, match=r"must give a torch\.nn\.Module, found list"):
        make_model("own_models:wrong", (5,), 4, 0)


# --- files


def test_torch_files_open_with_torch_and_come_back(tmp_path: Path) -> None:
    state = TorchTrainer(WithBuffers()).get_state()
    save_pt(tmp_path / "model.pt", state)
    WithBuffers().load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert dump(read_pt(tmp_path / "model.pt")) == dump(state)


def test_what_is_no_torch_state_dict_is_refused(trap: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for content in ({"w": trap}, [torch.ones(1)], {"w": 1}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"model\.pt (is no torch file|holds no state dict)"):
            read_pt(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"model\.pt is no torch file"):
        read_pt(path)
    with pytest.raises(FileNotFoundError):
        read_pt(tmp_path / "missing.pt")
