"""A real Mosquitto in a process of its own, on a free port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

INSTALL = "these tests need a broker: apt-get install mosquitto"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Mosquitto:
    """One broker; killed and started again it keeps its port and its folder."""

    def __init__(self, config: Path, port: int, inside: Sequence[str] = ()) -> None:
        """`config`: a whole mosquitto.conf, whose listener is on `port`; `inside`: words that come first."""
        self.config = config
        self._inside = inside
        self.port = port
        self.log: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._drain: threading.Thread | None = None

    @classmethod
    def write(cls, folder: Path, *lines: str, allow_anonymous: bool = True) -> Mosquitto:
        """A broker on loopback with these lines in its configuration."""
        port = free_port()
        config = folder / "mosquitto.conf"
        anonymous = f"allow_anonymous {str(allow_anonymous).lower()}"
        user = ["user root"] if os.getuid() == 0 else []  # or it could not read the files of the test
        own = [f"listener {port} 127.0.0.1", "set_tcp_nodelay true", anonymous, *user]
        config.write_text("\n".join([*own, *lines, ""]))
        return cls(config, port)

    def start(self) -> Mosquitto:
        """Returns when it listens."""
        path = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        assert path is not None, INSTALL
        self._process = subprocess.Popen(
            [*self._inside, path, "-v", "-c", str(self.config)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(line)
            if line.rstrip().endswith("running"):
                break
        else:
            self._process.wait()
            self._process.stderr.close()
            raise AssertionError(f"mosquitto did not start: {self.log}")
        self._drain = threading.Thread(target=self.log.extend, args=(self._process.stderr,), daemon=True)
        self._drain.start()
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the process. Does nothing where none runs."""
        if self._process is None:
            return
        self.thaw()
        self._process.send_signal(number)
        self._process.wait()
        assert self._drain is not None
        self._drain.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._process = None

    def restart(self, number: signal.Signals) -> None:
        self.stop(number)
        self.start()


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """A broker that anybody on this machine may use."""
    broker = Mosquitto.write(tmp_path_factory.mktemp("mosquitto")).start()
    yield broker
    broker.stop()
