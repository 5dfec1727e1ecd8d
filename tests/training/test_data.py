"""The data set loaders, on small files of the real formats that the tests write."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightsecagg.errors import ConfigError
from lightsecagg.training.base import Dataset
from lightsecagg.training.data import load_dataset

RNG = np.random.default_rng(5)
TRAIN = RNG.integers(0, 256, (6, 28, 28), np.uint8), np.array([3, 1, 4, 1, 5, 9], np.uint8)
TEST = RNG.integers(0, 256, (2, 28, 28), np.uint8), np.array([2, 6], np.uint8)
FILES = {
    "train-images-idx3-ubyte": TRAIN[0],
    "train-labels-idx1-ubyte": TRAIN[1],
    "t10k-images-idx3-ubyte": TEST[0],
    "t10k-labels-idx1-ubyte": TEST[1],
}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, *, dots: bool = False, packed: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in FILES.items():
        path = folder / (name.replace("-idx", ".idx") if dots else name)
        if packed:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx(array)))
        else:
            path.write_bytes(idx(array))


def leaf(users: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    return {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {
            user: {"x": (x.reshape(len(x), -1) / 255).tolist(), "y": y.tolist()}
            for user, (x, y) in users.items()
        },
    }


def write_leaf(cache: Path, **changes: Any) -> Path:
    """FedML's two folders; ``changes`` go into the first training file. Returns that file."""
    x, y = TRAIN
    train = [leaf({"f_0001": (x[:2], y[:2]), "f_0000": (x[2:3], y[2:3])}), leaf({"f_0002": (x[3:], y[3:])})]
    train[0].update(changes)
    for part, files in (("train", train), ("test", [leaf({"f_0001": TEST})])):
        folder = cache / "MNIST" / part
        folder.mkdir(parents=True)
        for number, content in enumerate(files):
            (folder / f"all_data_{number}.json").write_text(json.dumps(content))
    return cache / "MNIST" / "train" / "all_data_0.json"


def assert_is_mnist(dataset: Dataset) -> None:
    assert dataset.num_classes == 10
    assert dataset.input_shape == (1, 28, 28)
    np.testing.assert_allclose(dataset.train_x[:, 0] * 255, TRAIN[0], atol=1e-4)
    np.testing.assert_allclose(dataset.test_x[:, 0] * 255, TEST[0], atol=1e-4)
    assert dataset.train_y.tolist() == TRAIN[1].tolist()
    assert dataset.test_y.tolist() == TEST[1].tolist()


def test_digits_are_split_once_for_all(digits: Dataset) -> None:
    assert digits.train_x.shape == (1438, 1, 8, 8)
    assert digits.test_x.shape == (359, 1, 8, 8)
    assert (digits.train_x.min(), digits.train_x.max()) == (0, 1)
    again = load_dataset("digits", Path("unused"), seed=99)
    assert np.array_equal(again.test_x, digits.test_x)
    assert np.bincount(digits.test_y, minlength=10).min() > 20


@pytest.mark.parametrize("folder", [".", "MNIST", "MNIST/raw", "mnist"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dots", [False, True])
def test_mnist_loads_from_idx_files(tmp_path: Path, folder: str, dots: bool, packed: bool) -> None:
    write_idx(tmp_path / folder, dots=dots, packed=packed)
    assert_is_mnist(load_dataset("mnist", tmp_path, seed=0))


def test_mnist_loads_from_leaf_files(tmp_path: Path) -> None:
    write_leaf(tmp_path)
    assert_is_mnist(load_dataset("mnist", tmp_path, seed=0))


def test_idx_files_win_over_leaf_files(tmp_path: Path) -> None:
    write_leaf(tmp_path, users=[], num_samples=[])
    write_idx(tmp_path)
    assert_is_mnist(load_dataset("mnist", tmp_path, seed=0))


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_idx(tmp_path / "fedml_data")
    assert_is_mnist(load_dataset("mnist", Path("~/fedml_data"), seed=0))


def test_missing_files_are_named_with_the_place_to_put_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset("mnist", tmp_path, seed=0)
    for wanted in (
        *FILES,
        f"{tmp_path}/MNIST/train/*.json",
        f"{tmp_path}/MNIST/test/*.json",
        "data_cache_dir",
    ):
        assert wanted in str(caught.value)


def test_a_single_missing_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ConfigError, match="lacks t10k-labels-idx1-ubyte"):
        load_dataset("mnist", tmp_path, seed=0)


def test_leaf_files_without_a_test_folder_are_missing_files(tmp_path: Path) -> None:
    write_leaf(tmp_path)
    (tmp_path / "MNIST" / "test" / "all_data_0.json").unlink()
    with pytest.raises(ConfigError, match="was not found"):
        load_dataset("mnist", tmp_path, seed=0)


IMAGES = idx(TRAIN[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", IMAGES[:-1], "truncated: shape .* takes 4720 bytes, found 4719"),
        ("train-images-idx3-ubyte", IMAGES + b"x", "too long: shape .* takes 4720 bytes, found 4721"),
        ("train-images-idx3-ubyte", IMAGES[:9], "truncated: wanted a header of 16 bytes, found 9"),
        ("train-images-idx3-ubyte", b"", "wanted the first bytes 00000803, found an empty file"),
        ("train-images-idx3-ubyte", b"\x00\x00\x0d" + IMAGES[3:], "found 00000d03"),
        ("train-images-idx3-ubyte", idx(TRAIN[0][:, :27]), "wanted images of 28 x 28, found \\(27, 28\\)"),
        ("train-labels-idx1-ubyte", IMAGES, "wanted the first bytes 00000801, found 00000803"),
        ("train-labels-idx1-ubyte", idx(TRAIN[1][:5]), "wanted 6 labels, one an image, found 5"),
        ("train-labels-idx1-ubyte", idx(TRAIN[1] + np.uint8(1)), "wanted labels 0..9, found 10"),
    ],
)
def test_a_broken_idx_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_idx(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name}: .*{message}"):
        load_dataset("mnist", tmp_path, seed=0)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: IMAGES, lambda data: b"\x1f\x8b" * 9]
)
def test_a_broken_gz_file_is_named(tmp_path: Path, damage: Any) -> None:
    write_idx(tmp_path, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        load_dataset("mnist", tmp_path, seed=0)


def one_user(x: Any, y: Any) -> dict[str, Any]:
    return {"users": ["u"], "num_samples": [1], "user_data": {"u": {"x": x, "y": y}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": ["f_0001", "nobody"]}, "user 'nobody': stands in users but not in user_data"),
        ({"num_samples": [2]}, "2 users, but num_samples for 1 of them"),
        ({"num_samples": [2, 2]}, "user 'f_0000': wanted num_samples = 2 samples, found 1"),
        ({"user_data": 3}, "no LEAF file: .*user_data"),
        (one_user([[0.0] * 784], [1, 2]), "user 'u': 1 samples, but 2 labels"),
        (one_user([[0.0] * 783], [1]), "user 'u': wanted 784 numbers a sample, found 783"),
        (one_user([[0.0] * 784], [10]), "user 'u': wanted labels 0..9"),
        (one_user([[0.0] * 784], [1.5]), "user 'u': wanted labels 0..9"),
        (one_user([["a"] * 784], [1]), "user 'u': .*Expected `float`, got `str`"),
    ],
)
def test_a_broken_leaf_file_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_leaf(tmp_path, **changes)
    with pytest.raises(ConfigError, match=rf"train/all_data_0\.json: {message}"):
        load_dataset("mnist", tmp_path, seed=0)


def test_a_truncated_leaf_file_is_named(tmp_path: Path) -> None:
    path = write_leaf(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"all_data_0\.json: no LEAF file: .*truncated"):
        load_dataset("mnist", tmp_path, seed=0)


def test_an_unknown_data_set_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data_args.dataset: wanted one of digits, mnist, or package.*'femnist'"
    ):
        load_dataset("femnist", tmp_path, seed=0)


def test_a_users_data_set_is_called_with_what_it_asks_for(tmp_path: Path, user_module) -> None:
    user_module(
        "own_data",
        "import numpy as np\n"
        "from lightsecagg.training.base import Dataset\n"
        "def load(seed, *, cache_dir):\n"
        "    x, y = np.full((3, 2), seed, np.float32), np.zeros(3, np.int64)\n"
        "    return Dataset(str(cache_dir), x, y, x, y, 1)\n"
        "def nothing():\n"
        "    return None\n",
    )
    dataset = load_dataset("own_data:load", tmp_path, seed=4)
    assert (dataset.name, dataset.train_x[0, 0]) == (str(tmp_path), 4)
    with pytest.raises(ConfigError, match="'own_data:nothing' must return a Dataset, found NoneType"):
        load_dataset("own_data:nothing", tmp_path, seed=4)
