"""scikit-learn's handwritten digits: 1,797 real 8 x 8 images that come with the library (UCI, 1998)."""

from __future__ import annotations

import numpy as np

from lightsecagg.training.base import Dataset
from lightsecagg.training.plugins import import_extra

SPLIT_SEED = 20220501  # one split for every run: a server's test images must be in no client's training set
TEST_SHARE = 5  # one image in five is held out


def load_digits() -> Dataset:
    """1,438 training and 359 test images, (n, 1, 8, 8) float32 in 0..1, ten labels.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    raw = import_extra("sklearn.datasets", "data set 'digits'").load_digits()
    x = (raw.images / 16).astype(np.float32)[:, np.newaxis]
    y = raw.target.astype(np.int64)
    # RandomState's streams are frozen, so the split is the same with every NumPy.
    order = np.random.RandomState(SPLIT_SEED).permutation(len(x))
    test, train = np.split(order, [len(x) // TEST_SHARE])
    return Dataset("digits", x[train], y[train], x[test], y[test], num_classes=10)
