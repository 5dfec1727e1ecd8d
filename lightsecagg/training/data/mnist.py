"""MNIST from files that lie in the data folder: the published IDX files, or FedML's LEAF JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightsecagg.errors import ConfigError
from lightsecagg.training.base import Array, Dataset, IntArray
from lightsecagg.training.data.idx import read_idx
from lightsecagg.training.data.leaf import read_leaf

SIDE = 28
NUM_CLASSES = 10

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
IDX_FOLDERS = (".", "MNIST", "MNIST/raw", "mnist")  # torchvision unpacks to MNIST/raw
LEAF_FOLDER = "MNIST"  # FedML's archive unpacks to MNIST/train and MNIST/test


def load_mnist(cache_dir: Path) -> Dataset:
    """MNIST as (n, 1, 28, 28) float32, ten labels; IDX files win over LEAF files.

    IDX pixels are scaled to 0..1; LEAF's values are kept (FedML's are standardised already).

    Raises:
        ConfigError: no files (what to put where), or a broken one (which, and how).
    """
    for folder in (cache_dir / name for name in IDX_FOLDERS):
        paths = [_find(folder, name) for name in IDX_FILES]
        found = [path for path in paths if path]
        if len(found) == len(IDX_FILES):
            return _from_idx(*found)
        if found:
            missing = [name for name, path in zip(IDX_FILES, paths, strict=True) if not path]
            raise ConfigError(f"data set 'mnist': {folder} lacks {', '.join(missing)} (or the same with .gz)")
    leaf = cache_dir / LEAF_FOLDER
    if any((leaf / "train").glob("*.json")) and any((leaf / "test").glob("*.json")):
        return _from_leaf(leaf)
    raise ConfigError(
        f"data set 'mnist' was not found in {cache_dir}. Put there either the four IDX files "
        f"{', '.join(IDX_FILES)} (plain or .gz; in {cache_dir} or {cache_dir / 'MNIST' / 'raw'}), "
        f"or FedML's LEAF files as {leaf / 'train' / '*.json'} and {leaf / 'test' / '*.json'}; "
        "or set data_args.data_cache_dir to where they lie"
    )


def _find(folder: Path, name: str) -> Path | None:
    """A file under its published name or, as some archives have it, with a dot before "idx"; plain or .gz."""
    for variant in (name, name.replace("-idx", ".idx")):
        for path in (folder / variant, folder / f"{variant}.gz"):
            if path.is_file():
                return path
    return None


def _from_idx(train_images: Path, train_labels: Path, test_images: Path, test_labels: Path) -> Dataset:
    return Dataset(
        "mnist",
        *_idx_part(train_images, train_labels),
        *_idx_part(test_images, test_labels),
        num_classes=NUM_CLASSES,
    )


def _idx_part(images_path: Path, labels_path: Path) -> tuple[Array, IntArray]:
    images, labels = read_idx(images_path, axes=3), read_idx(labels_path, axes=1)
    if images.shape[1:] != (SIDE, SIDE):
        raise ConfigError(f"{images_path}: wanted images of {SIDE} x {SIDE}, found {images.shape[1:]}")
    if len(images) != len(labels):
        raise ConfigError(f"{labels_path}: wanted {len(images)} labels, one an image, found {len(labels)}")
    if labels.size and labels.max() >= NUM_CLASSES:
        raise ConfigError(f"{labels_path}: wanted labels 0..{NUM_CLASSES - 1}, found {labels.max()}")
    return images[:, np.newaxis].astype(np.float32) / np.float32(255), labels.astype(np.int64)


def _from_leaf(folder: Path) -> Dataset:
    train_x, train_y = read_leaf(folder / "train", SIDE * SIDE, NUM_CLASSES)
    test_x, test_y = read_leaf(folder / "test", SIDE * SIDE, NUM_CLASSES)
    image = (-1, 1, SIDE, SIDE)
    return Dataset("mnist", train_x.reshape(image), train_y, test_x.reshape(image), test_y, NUM_CLASSES)
