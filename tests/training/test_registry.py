"""Trainers by name, FedML's trainers, and what is imported when."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightsecagg.errors import ConfigError
from lightsecagg.training.base import Dataset, Evaluation, LocalData, Trainer, TrainingStopped
from lightsecagg.training.numpy_trainer import NumpySoftmax
from lightsecagg.training.plugins import import_extra, load_plugin
from lightsecagg.training.registry import make_trainer, read_model, save_model, set_threads
from lightsecagg.training.state import dump

# What a FedML user has, in that project's style, with its import line changed.
FEDML_TRAINER = """
import torch
from torch import nn
from lightsecagg.training.fedml import ClientTrainer

class Classifier(ClientTrainer):
    def __init__(self, model, args):
        super().__init__(model, args)
        self.calls = [args.note]

    def get_model_params(self):
        return self.model.cpu().state_dict()

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters)

    def on_before_local_training(self, train_data, device, args):
        self.calls.append("before")

    def on_after_local_training(self, train_data, device, args):
        self.calls.append("after")

    def train(self, train_data, device, args):
        self.model.to(device).train()
        criterion = nn.CrossEntropyLoss().to(device)
        assert args.client_optimizer == "sgd"
        optimizer = torch.optim.SGD(self.model.parameters(), lr=args.learning_rate)
        for epoch in range(args.epochs):
            for batch_idx, (x, labels) in enumerate(train_data):
                x, labels = x.to(device), labels.to(device)
                self.model.zero_grad()
                loss = criterion(self.model(x), labels.long())
                loss.backward()
                optimizer.step()
                assert batch_idx * args.batch_size < len(train_data) * args.batch_size
            self.calls.append(epoch)

    def test(self, test_data, device, args):
        metrics = {"test_correct": 0, "test_loss": 0, "test_total": 0}
        self.model.to(device).eval()
        with torch.no_grad():
            for x, target in test_data:
                scores = self.model(x.to(device))
                loss = nn.CrossEntropyLoss()(scores, target)
                metrics["test_correct"] += scores.argmax(-1).eq(target).sum().item()
                metrics["test_loss"] += loss.item() * target.size(0)
                metrics["test_total"] += target.size(0)
        return metrics

class Silent(Classifier):
    def test(self, test_data, device, args):
        pass

class Incomplete(Classifier):
    def test(self, test_data, device, args):
        return {"test_total": 2, "test_correct": 1}
"""


@pytest.fixture
def make_fedml(user_module, digits: Dataset):
    user_module("fedml_user", FEDML_TRAINER)

    def make(name: str = "Classifier") -> Trainer:
        return make_trainer(f"fedml_user:{name}", "lr", digits, 0, args={"note": "from the file"})

    return make


def test_a_fedml_trainer_trains_and_tests(make_fedml, digits: Dataset, local: LocalData, settings) -> None:
    trainer = make_fedml()
    result = trainer.train(local, settings(epochs=3), lambda: False)
    evaluation = trainer.evaluate(digits.test_x, digits.test_y)
    assert (result.num_samples, result.loss) == (1438, None)
    assert evaluation.accuracy > 0.88
    assert 0 < evaluation.loss < 1
    assert evaluation.num_samples == 359
    assert trainer._trainer.calls == ["from the file", "before", 0, 1, 2, "after"]


def test_a_fedml_trainer_takes_states_and_follows_the_seed(make_fedml, local: LocalData, settings) -> None:
    few = LocalData(local.x[:100], local.y[:100])
    start = NumpySoftmax(64, 10).get_state()
    states = []
    for seed in (1, 1, 2):
        trainer = make_fedml()
        trainer.set_state(start)
        assert dump(trainer.get_state()) == dump(start)
        trainer.train(few, settings(seed=seed), lambda: False)
        states.append(dump(trainer.get_state()))
    assert states[0] == states[1] != states[2]


def test_a_fedml_trainer_stops_at_its_next_batch(
    make_fedml, local: LocalData, settings, stop_before_batch
) -> None:
    trainer = make_fedml()
    before = dump(trainer.get_state())
    with pytest.raises(TrainingStopped):
        trainer.train(local, settings(), stop_before_batch(0))
    assert dump(trainer.get_state()) == before
    with pytest.raises(TrainingStopped):
        trainer.train(local, settings(), stop_before_batch(3))
    assert dump(trainer.get_state()) != before


def test_a_fedml_trainer_that_tests_little_or_nothing_still_serves(make_fedml, digits: Dataset) -> None:
    x, y = digits.test_x[:2], digits.test_y[:2]
    assert make_fedml("Silent").evaluate(x, y) == Evaluation(None, None, 2)
    assert make_fedml("Incomplete").evaluate(x, y) == Evaluation(0.5, None, 2)


def test_a_fedml_trainer_without_samples_changes_nothing(make_fedml, settings) -> None:
    trainer = make_fedml()
    before = dump(trainer.get_state())
    empty = LocalData(np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, np.int64))
    assert trainer.train(empty, settings(), lambda: False).num_samples == 0
    assert dump(trainer.get_state()) == before


@pytest.mark.parametrize("name", [None, "torch"])
def test_torch_is_the_default_trainer(digits: Dataset, name: str | None) -> None:
    trainer = make_trainer(name, "cnn", digits, 3)
    assert type(trainer).__name__ == "TorchTrainer"
    assert dump(trainer.get_state()) == dump(make_trainer("torch", "cnn", digits, 3).get_state())


def test_the_numpy_trainer_fits_the_data_set_and_has_one_model(digits: Dataset) -> None:
    assert make_trainer("numpy", "lr", digits, 0).get_state()["linear.weight"].shape == (10, 64)
    with pytest.raises(ConfigError, match="'numpy' trains 'lr' only, found 'cnn'"):
        make_trainer("numpy", "cnn", digits, 0)


def test_a_users_trainer_is_called_with_data_set_and_seed(user_module, digits: Dataset) -> None:
    user_module(
        "own_trainers",
        "from lightsecagg.training.numpy_trainer import NumpySoftmax\n"
        "class Mine(NumpySoftmax):\n"
        "    def __init__(self, dataset, seed):\n"
        "        super().__init__(dataset.input_shape[-1], seed)\n"
        "def nothing(dataset, seed):\n"
        "    return None\n",
    )
    trainer = make_trainer("own_trainers:Mine", "ignored", digits, 3)
    assert trainer.get_state()["linear.weight"].shape == (3, 8)
    with pytest.raises(ConfigError, match="must give a Trainer, found NoneType"):
        make_trainer("own_trainers:nothing", "lr", digits, 3)


def test_an_unknown_trainer_lists_the_known_ones(digits: Dataset) -> None:
    with pytest.raises(
        ConfigError, match=r"model_args.trainer: wanted one of numpy, torch, or package.*'jax'"
    ):
        make_trainer("jax", "lr", digits, 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (":name", "wanted package.module:name, found ':name'"),
        ("module:", "wanted package.module:name, found 'module:'"),
        ("no_such_package.module:name", "there is no module 'no_such_package'.*PYTHONPATH"),
        ("os:no_such_name", "has no attribute 'no_such_name'"),
        ("os:sep", "must be a class or a function, found str"),
        ("needs_another:name", "importing 'needs_another' failed: No module named 'no_such_library'"),
        ("broken:name", "importing 'broken' failed: ZeroDivisionError"),
    ],
)
def test_a_name_that_points_nowhere_says_what_is_wrong(user_module, spec: str, message: str) -> None:
    user_module("needs_another", "import no_such_library")
    user_module("broken", "1 / 0")
    with pytest.raises(ConfigError, match=rf"some_args.key: .*{message}"):
        load_plugin(spec, "some_args.key")


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "no_such_library", None)
    with pytest.raises(
        ConfigError, match=r'\'that\' needs no_such_library: pip install "lightsecagg\[train\]"'
    ):
        import_extra("no_such_library", "'that'")


@pytest.mark.parametrize("name", ["model.npz", "model.pt", "model.pth", "model"])
def test_model_files_come_back_in_the_form_their_name_asks_for(tmp_path: Path, name: str) -> None:
    state = {"w": np.arange(3, dtype=np.float32), "n": np.array(4)}
    save_model(tmp_path / name, state)
    assert dump(read_model(tmp_path / name)) == dump(state)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_threads_can_be_set_once_torch_is_there(digits: Dataset) -> None:
    import torch

    make_trainer("torch", "lr", digits, 0)
    set_threads(1)
    assert torch.get_num_threads() == 1


NOT_INSTALLED = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder())
"""

WITHOUT_TORCH = """
from pathlib import Path

from lightsecagg.training import base, fedml, numpy_trainer, partition, plugins, registry, state
from lightsecagg.training.data import load_dataset

dataset = load_dataset("digits", Path(), 0)
mine = partition.partition(dataset.train_y, 5, "hetero", 0.5, 0)[0]
trainer = registry.make_trainer("numpy", "lr", dataset, 0)
registry.set_threads(1)
settings = base.TrainSettings(3, 10, 0.1, 0.0, "sgd", 0)
trainer.train(base.LocalData(dataset.train_x[mine], dataset.train_y[mine]), settings, lambda: False)
trainer.set_state(state.load(state.dump(trainer.get_state())))
print(trainer.evaluate(dataset.test_x, dataset.test_y).accuracy > 0.3, "torch" in sys.modules)
"""


def in_a_process(source: str, *not_installed: str) -> subprocess.CompletedProcess[str]:
    """Run Python source in a process that finds no module of the packages ``not_installed``."""
    command = [sys.executable, "-c", NOT_INSTALLED + source, *not_installed]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_numpy_client_never_loads_torch() -> None:
    finished = in_a_process(WITHOUT_TORCH)
    assert (finished.stdout, finished.returncode) == ("True False\n", 0), finished.stderr


def test_a_numpy_client_needs_no_torch_installed() -> None:
    finished = in_a_process(WITHOUT_TORCH, "torch", "torchvision")
    assert (finished.stdout, finished.returncode) == ("True False\n", 0), finished.stderr


@pytest.mark.parametrize(
    ("missing", "source"),
    [
        ("torch", "from lightsecagg.training.registry import *\nsave_model(Path('x.pt'), {})"),
        ("torch", "from lightsecagg.training.registry import *\nmake_trainer(None, 'lr', None, 0)"),
        ("sklearn", "from lightsecagg.training.data import *\nload_dataset('digits', Path(), 0)"),
    ],
)
def test_without_the_extra_the_error_says_what_to_install(missing: str, source: str) -> None:
    finished = in_a_process(f"from pathlib import Path\n{source}", missing)
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].endswith(f'needs {missing}: pip install "lightsecagg[train]"')


def test_training_with_sgd_does_not_load_torchs_compiler() -> None:
    finished = in_a_process(
        "import sys, numpy as np\n"
        "from lightsecagg.training.base import *\n"
        "from lightsecagg.training.registry import make_trainer\n"
        "x, y = np.ones((4, 2), np.float32), np.zeros(4, np.int64)\n"
        "trainer = make_trainer('torch', 'lr', Dataset('d', x, y, x, y, 2), 0)\n"
        "trainer.train(LocalData(x, y), TrainSettings(1, 2, 0.1, 0.0, 'sgd', 0), lambda: False)\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    assert (finished.stdout, finished.returncode) == ("False\n", 0), finished.stderr
