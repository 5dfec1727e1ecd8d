"""Softmax regression in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from lightsecagg.errors import UpdateError
from lightsecagg.training.base import Dataset, Evaluation, LocalData, Trainer, TrainingStopped
from lightsecagg.training.numpy_trainer import NumpySoftmax


@pytest.fixture
def trainer() -> Trainer:
    return NumpySoftmax(64, 10)


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 0.1}, {"client_optimizer": "adam", "learning_rate": 0.01}]
)
def test_it_learns_the_digits(
    trainer: Trainer, digits: Dataset, local: LocalData, settings, changes: dict[str, object]
) -> None:
    before = trainer.evaluate(digits.test_x, digits.test_y)
    result = trainer.train(local, settings(epochs=5, **changes), lambda: False)
    after = trainer.evaluate(digits.test_x, digits.test_y)
    assert before.loss == pytest.approx(np.log(10), rel=1e-5)
    assert after.accuracy > 0.9
    assert after.num_samples == 359
    assert result.num_samples == 1438
    assert result.loss < 0.5


def test_the_same_seed_gives_the_same_model_and_another_seed_another(local: LocalData, settings) -> None:
    def trained(seed: int) -> np.ndarray:
        trainer = NumpySoftmax(64, 10)
        trainer.train(local, settings(seed=seed), lambda: False)
        return trainer.get_state()["linear.weight"]

    assert np.array_equal(trained(1), trained(1))
    assert not np.array_equal(trained(1), trained(2))


def test_training_stops_between_batches_when_asked(
    trainer: Trainer, local: LocalData, settings, stop_before_batch
) -> None:
    once = NumpySoftmax(64, 10)
    first_ten = np.random.default_rng(7).permutation(1438)[:10]
    once.train(LocalData(local.x[first_ten], local.y[first_ten]), settings(), lambda: False)
    with pytest.raises(TrainingStopped):
        trainer.train(local, settings(), stop_before_batch(1))
    for name, array in trainer.get_state().items():  # exactly one step was taken
        np.testing.assert_allclose(array, once.get_state()[name], atol=1e-6)


def test_a_gradient_is_the_slope_of_the_loss(settings) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((6, 4), np.float32), np.array([0, 1, 2, 2, 1, 0])
    trainer = NumpySoftmax(4, 3)
    start = {name: rng.standard_normal(a.shape).astype(np.float32) for name, a in trainer.get_state().items()}
    trainer.set_state(start)
    trainer.train(LocalData(x, y), settings(learning_rate=1.0, weight_decay=0.0), lambda: False)
    after = trainer.get_state()

    def loss(weight: np.ndarray, bias: np.ndarray) -> float:
        scores = x.astype(np.float64) @ weight.T + bias
        return float(np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(6), y]))

    for name, array in start.items():
        for index in np.ndindex(array.shape):
            slopes = []
            for step in (1e-5, -1e-5):
                moved = {key: value.astype(np.float64) for key, value in start.items()}
                moved[name][index] += step
                slopes.append(loss(moved["linear.weight"], moved["linear.bias"]))
            slope = (slopes[0] - slopes[1]) / 2e-5
            assert array[index] - after[name][index] == pytest.approx(slope, abs=1e-5)


def test_without_samples_nothing_changes(trainer: Trainer, settings) -> None:
    empty_x, empty_y = np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, np.int64)
    result = trainer.train(LocalData(empty_x, empty_y), settings(), lambda: False)
    assert (result.num_samples, result.loss) == (0, None)
    assert trainer.evaluate(empty_x, empty_y) == Evaluation(None, None, 0)
    assert not trainer.get_state()["linear.weight"].any()


def test_states_are_copied_in_and_out(trainer: Trainer) -> None:
    state = trainer.get_state()
    state["linear.bias"] += 1
    assert not trainer.get_state()["linear.bias"].any()
    trainer.set_state(state)
    state["linear.bias"] += 1
    assert trainer.get_state()["linear.bias"].tolist() == [1] * 10


def test_a_state_of_another_model_is_refused(trainer: Trainer) -> None:
    state = trainer.get_state()
    with pytest.raises(UpdateError, match=r"missing linear\.bias; unknown none"):
        trainer.set_state({"linear.weight": state["linear.weight"]})
    with pytest.raises(UpdateError, match="missing none; unknown other"):
        trainer.set_state({**state, "other": np.zeros(1)})
    with pytest.raises(UpdateError, match=r"'linear\.bias' has shape \(3,\), the model wants \(10,\)"):
        trainer.set_state({**state, "linear.bias": np.zeros(3)})
