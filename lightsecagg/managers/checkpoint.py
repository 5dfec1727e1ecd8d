"""The folder of a run: the model after every round, and the round number before it is announced."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import BinaryIO

from lightsecagg.errors import ConfigError, RunStopped
from lightsecagg.settings import Settings
from lightsecagg.training.base import State
from lightsecagg.training.registry import save_model
from lightsecagg.training.state import write_atomically

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RunFolder:
    """``runs/RUN_ID``: everything of a run lies there, unless the settings say otherwise.

    Args:
        runs: the folder of all runs.
        run_id: letters, digits, ``.``, ``_`` and ``-``.

    Raises:
        ConfigError: the run id is no usable name.
    """

    def __init__(self, runs: Path, run_id: str, settings: Settings) -> None:
        if not _RUN_ID.fullmatch(run_id):
            raise ConfigError(f"RUN_ID: wanted up to 64 letters, digits, '.', '_' and '-', found {run_id!r}")
        self.path = runs / run_id
        self.run_id = run_id
        log_folder = settings.tracking_args.log_file_dir
        self.logs = self.path if log_folder is None else Path(log_folder) / run_id
        named = settings.model_args.global_model_file_path
        self.model = self.path / "model.npz" if named is None else Path(named)
        self._round = self.path / "round"
        self.keeps_model = named is None
        """Whether the model file is this run's own, and not one that other runs may have written."""

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            ConfigError: they cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.logs.mkdir(parents=True, exist_ok=True)
            self.model.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make {error.filename}: {error.strerror}; choose another place with --runs"
            ) from None

    def check_unused(self) -> None:
        """A run id is used once.

        Raises:
            ConfigError: a server has used it.
        """
        if self._round.exists():
            raise ConfigError(
                f"run {self.run_id!r} exists in {self.path}; "
                "choose another RUN_ID, or move that folder with the model in it; and start the clients again"
            )

    def claim(self) -> None:
        """Make the run id this server's, once it listens.

        Raises:
            ConfigError: a server has used it.
            RunStopped: the folder cannot be written.
        """
        try:
            os.close(os.open(self._round, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError:
            self.check_unused()
        except OSError as error:
            raise _cannot_write(self._round, error) from None

    def release(self) -> None:
        """Give the run id back: no round was announced under it."""
        with contextlib.suppress(OSError):
            self._round.unlink()

    def store_round(self, number: int) -> None:
        """Write the number down for good, before anybody hears of the round: it is never used again.

        Raises:
            RunStopped: it cannot be written.
        """

        def write(file: BinaryIO) -> None:
            file.write(f"{number}\n".encode())

        try:
            write_atomically(self._round, write)
        except OSError as error:
            raise _cannot_write(self._round, error) from None

    def save_model(self, state: State) -> None:
        """Replace the model file in one step: a reader sees the old one or the new one, whole.

        Raises:
            RunStopped: it cannot be written.
        """
        try:
            save_model(self.model, state)
        except OSError as error:
            raise _cannot_write(self.model, error) from None


def _cannot_write(path: Path, error: OSError) -> RunStopped:
    return RunStopped(f"cannot write {path}: {error.strerror}; what stood there before still does")
