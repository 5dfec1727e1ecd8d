"""Hosts of the tests' own: network namespaces on one switch, with cables that can be pulled and made slow.

A namespace has no name here: it lives as long as the process that holds it, and that one ends with the tests,
however these end. So nothing is left over, and the machine's own network never sees any of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

_WORDS = ("unshare", "nsenter", "ip", "tc")


class Namespace:
    """A network of its own, with nothing in it but a loopback interface."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo inside && exec cat"],  # cat ends when its input does
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._holder.stdout is not None
        if (said := self._holder.stdout.readline()) != "inside\n":
            self.close()
            pytest.fail(f"cannot make a network namespace: {said.strip()}; a container needs --privileged")
        self.pid = str(self._holder.pid)
        self.inside = ("nsenter", f"--net=/proc/{self.pid}/ns/net")
        """The words that start a command in it."""
        self.run("ip link set lo up")

    def run(self, command: str) -> None:
        """Run a command to its end."""
        done = subprocess.run([*self.inside, *command.split()], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"

    def close(self) -> None:
        """Let go of it: the kernel takes its interfaces away once nobody is in it any more."""
        self._holder.communicate()


class Host(Namespace):
    """A machine with one cable to the switch."""

    def __init__(self, switch: Namespace, number: int) -> None:
        super().__init__()
        self.address = f"10.77.0.{number + 1}"
        self._switch = switch
        self._port = f"port{number}"
        # Both ends are born where they belong, so that the machine's own namespace has neither for a moment.
        switch.run(f"ip link add {self._port} type veth peer name cable netns {self.pid}")
        switch.run(f"ip link set {self._port} master bridge up")
        self.run(f"ip address add {self.address}/24 dev cable")
        self.run("ip link set cable up")

    def unplug(self) -> None:
        """Pull the cable out of the switch: both ends lose the carrier, and what is sent is lost."""
        self._switch.run(f"ip link set {self._port} down")

    def plug(self) -> None:
        """Put the cable back."""
        self._switch.run(f"ip link set {self._port} up")

    def limit(self, up_mbit: int, down_mbit: int) -> None:
        """Make the cable slow: what leaves the host, and what reaches it."""
        for end, device, rate in ((self, "cable", up_mbit), (self._switch, self._port, down_mbit)):
            end.run(f"tc qdisc replace dev {device} root tbf rate {rate}mbit burst 64kb latency 100ms")


@contextlib.contextmanager
def network(clients: int) -> Iterator[list[Host]]:
    """A server, number 0, and so many clients, all on one switch."""
    _demand()
    with contextlib.ExitStack() as held:
        switch = held.enter_context(contextlib.closing(Namespace()))
        switch.run("ip link add bridge type bridge")
        switch.run("ip link set bridge up")
        yield [held.enter_context(contextlib.closing(Host(switch, number))) for number in range(clients + 1)]


def _demand() -> None:
    """These tests are not skipped: where they cannot run they fail, with the way out."""
    if os.geteuid() != 0:
        pytest.fail(f"network namespaces take root; run: sudo {sys.executable} -m pytest tests/network")
    missing = [word for word in _WORDS if shutil.which(word) is None]
    if missing:
        pytest.fail(f"not installed: {', '.join(missing)}; run: apt-get install iproute2 util-linux")
