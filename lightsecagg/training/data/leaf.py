"""LEAF's JSON files, the form in which FedML keeps MNIST: samples grouped by user."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from lightsecagg.errors import ConfigError
from lightsecagg.training.base import IntArray


class _File(msgspec.Struct):
    users: list[str]
    num_samples: list[int]
    # Decoded one user at a time: as Python floats, FedML's MNIST would take some gigabytes at once.
    user_data: dict[str, msgspec.Raw]


class _User(msgspec.Struct):
    x: list[list[float]]
    y: list[float]


def read_leaf(folder: Path, num_features: int, num_classes: int) -> tuple[npt.NDArray[np.float32], IntArray]:
    """All samples of all users in a folder's ``*.json`` files, by file name and the files' order of users.

    Returns:
        x (n, num_features) float32 and y (n,) int64.

    Raises:
        ConfigError: a file is broken, or a user's samples have another form, naming both.
    """
    xs = [np.empty((0, num_features), np.float32)]
    ys = [np.empty(0, np.int64)]
    for path in sorted(folder.glob("*.json")):
        try:
            file = msgspec.json.decode(path.read_bytes(), type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{path}: no LEAF file: {error}") from error
        if len(file.num_samples) != len(file.users):
            raise ConfigError(
                f"{path}: {len(file.users)} users, but num_samples for {len(file.num_samples)} of them"
            )
        for user, count in zip(file.users, file.num_samples, strict=True):
            x, y = _samples(f"{path}: user {user!r}", file.user_data.get(user), num_features, num_classes)
            if len(x) != count:
                raise ConfigError(
                    f"{path}: user {user!r}: wanted num_samples = {count} samples, found {len(x)}"
                )
            xs.append(x)
            ys.append(y)
    return np.concatenate(xs), np.concatenate(ys)


def _samples(
    what: str, raw: msgspec.Raw | None, num_features: int, num_classes: int
) -> tuple[npt.NDArray[np.float32], IntArray]:
    if raw is None:
        raise ConfigError(f"{what}: stands in users but not in user_data")
    try:
        data = msgspec.json.decode(raw, type=_User)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{what}: {error}") from error
    if len(data.x) != len(data.y):
        raise ConfigError(f"{what}: {len(data.x)} samples, but {len(data.y)} labels")
    widths = {len(sample) for sample in data.x} - {num_features}
    if widths:
        raise ConfigError(f"{what}: wanted {num_features} numbers a sample, found {min(widths)}")
    labels = np.array(data.y, np.float64)
    if not np.isin(labels, np.arange(num_classes)).all():
        raise ConfigError(f"{what}: wanted labels 0..{num_classes - 1}, found others")
    return np.array(data.x, np.float32).reshape(-1, num_features), labels.astype(np.int64)
