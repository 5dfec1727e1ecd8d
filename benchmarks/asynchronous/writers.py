"""A synthetic set in the form of FEMNIST: 62 characters in 28 × 28 grey, by writers of different hands.

A character is two strokes, each a Bézier curve whose control points the seed draws. A writer has a slant, a
pen, and forms of its own for every character, and uses some characters more than others; no two samples of a
writer are the same. Whoever tests sees new samples of the same writers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightsecagg.training.base import Dataset, IntArray, LocalData

CLASSES = 62
SIDE = 28
WRITERS = 8
TRAIN_SAMPLES = (200, 400)
"""Fewest and most of a writer."""
TEST_SAMPLES = 150
"""Of each writer."""

_LABEL_CONCENTRATION = (
    2.0  # of the Dirichlet distribution of a writer's characters: the smaller, the more uneven
)
_STROKES, _CONTROLS, _DOTS = 2, 4, 16  # of a character; control points of a stroke, and dots that draw it
_OWN_FORM, _TREMOR = 0.06, 0.025  # standard deviations of control points; the picture's side is 1
_SHIFT, _GRAIN = 0.03, 0.1  # of a sample's place, and of its grey

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Handwriting(Dataset):
    """The set, whose silos are its writers.

    Attributes:
        writer: (n,) int64, who wrote each training sample, from 0.
    """

    writer: IntArray

    def by(self, writer: int) -> LocalData:
        """What one wrote."""
        rows = self.writer == writer
        return LocalData(self.train_x[rows], self.train_y[rows])


def handwriting(seed: int) -> Handwriting:
    """The set of one seed: another seed means other characters and other writers."""
    random = np.random.default_rng([seed, CLASSES])
    alphabet = random.uniform(0.15, 0.85, (CLASSES, _STROKES, _CONTROLS, 2))
    train, test = [], []
    for _ in range(WRITERS):
        writer = _Writer(alphabet, random)
        train.append(writer.write(int(random.integers(*TRAIN_SAMPLES, endpoint=True)), random))
        test.append(writer.write(TEST_SAMPLES, random))
    writers = np.repeat(np.arange(WRITERS), [len(y) for _, y in train])
    (train_x, train_y), (test_x, test_y) = (
        (np.concatenate([x for x, _ in part]), np.concatenate([y for _, y in part])) for part in (train, test)
    )
    return Handwriting("handwriting", train_x, train_y, test_x, test_y, CLASSES, writers)


class _Writer:
    """One hand.

    Args:
        alphabet: (classes, strokes, controls, 2), what everybody learnt to write.
        random: draws what is this writer's own.
    """

    def __init__(self, alphabet: Floats, random: np.random.Generator) -> None:
        self._forms = alphabet + random.normal(0, _OWN_FORM, alphabet.shape)
        slant, scale = random.normal(0, 0.25), random.uniform(0.75, 1.1)
        self._lean = np.array([[scale, 0.0], [slant * scale, scale * random.uniform(0.85, 1.15)]])
        self._pen = random.uniform(0.025, 0.05)
        self._darkness = random.uniform(0.6, 1.0)
        self._frequencies = random.dirichlet(np.full(CLASSES, _LABEL_CONCENTRATION))

    def write(
        self, count: int, random: np.random.Generator
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """So many samples: x (count, 1, side, side) in 0..1, and y (count,)."""
        labels = random.choice(CLASSES, count, p=self._frequencies)
        controls = self._forms[labels]
        controls = controls + random.normal(0, _TREMOR, controls.shape)
        controls = (controls - 0.5) @ self._lean + 0.5 + random.normal(0, _SHIFT, (count, 1, 1, 2))
        ink = self._darkness * _draw(controls, self._pen)
        grey = np.clip(ink + random.normal(0, _GRAIN, ink.shape), 0, 1)
        return grey[:, np.newaxis].astype(np.float32), labels.astype(np.int64)


def _draw(controls: Floats, pen: float) -> Floats:
    """Strokes given by control points (n, strokes, controls, 2), as ink in 0..1, (n, side, side)."""
    t = np.linspace(0, 1, _DOTS)[:, np.newaxis]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    dots = (weights @ controls).reshape(len(controls), -1, 1, 2)
    places = (np.arange(SIDE) + 0.5) / SIDE
    # A dot is a Gaussian, a product of its two axes: so the sum over the dots is one product of matrices.
    across, down = (np.exp(-(((places - dots[..., axis]) / pen) ** 2) / 2) for axis in (0, 1))
    ink: Floats = np.minimum(down.transpose(0, 2, 1) @ across, 1.0)
    return ink
