"""The values that trainers share: what they refuse, and the seeded batches."""

from __future__ import annotations

import numpy as np
import pytest

from lightsecagg.errors import ConfigError
from lightsecagg.training.base import Dataset, LocalData, TrainingStopped, batches

IMAGES = np.zeros((4, 1, 2, 2), np.float32)
LABELS = np.array([0, 1, 2, 1])


def test_a_data_set_knows_the_shape_of_a_sample() -> None:
    assert Dataset("d", IMAGES, LABELS, IMAGES[:0], LABELS[:0], num_classes=3).input_shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("train_x", "train_y", "message"),
    [
        (IMAGES.astype(np.float64), LABELS, "train_x: wanted float32 .* found float64"),
        (IMAGES[0, 0, 0], LABELS, "train_x: wanted float32 .* found float32 \\(2,\\)"),
        (IMAGES, LABELS[:3], "train_y: wanted int64 of shape \\(4,\\), found int64 \\(3,\\)"),
        (IMAGES, LABELS.astype(np.int32), "train_y: .* found int32"),
        (IMAGES, LABELS + 1, "train_y: wanted labels 0..2, found 1..3"),
        (IMAGES, LABELS - 1, "train_y: wanted labels 0..2, found -1..1"),
        (IMAGES.reshape(4, 4), LABELS, "test samples must have the shape"),
    ],
)
def test_a_data_set_of_another_form_is_refused(
    train_x: np.ndarray, train_y: np.ndarray, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"'mine'.*{message}"):
        Dataset("mine", train_x, train_y, IMAGES, LABELS, num_classes=3)


def test_samples_without_their_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="4 samples, 3 labels"):
        LocalData(IMAGES, LABELS[:3])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("weight_decay", -0.1),
        ("client_optimizer", "lbfgs"),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"train_args.{key}: wanted .*, found"):
        settings(**{key: value})


def test_every_epoch_holds_every_sample_once_in_its_own_order(settings) -> None:
    drawn: dict[int, list[int]] = {0: [], 1: []}
    sizes = []
    for epoch, rows in batches(25, settings(epochs=2), lambda: False):
        drawn[epoch] += rows.tolist()
        sizes.append(len(rows))
    assert sizes == [10, 10, 5, 10, 10, 5]
    assert sorted(drawn[0]) == sorted(drawn[1]) == list(range(25))
    assert drawn[0] != drawn[1]


def test_the_seed_alone_decides_the_order(settings) -> None:
    def order(seed: int) -> list[int]:
        return [row for _, rows in batches(25, settings(seed=seed), lambda: False) for row in rows]

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_batches_stop_when_asked(settings, stop_before_batch) -> None:
    drawn = batches(25, settings(), stop_before_batch(1))
    assert next(drawn)[0] == 0
    with pytest.raises(TrainingStopped):
        next(drawn)
