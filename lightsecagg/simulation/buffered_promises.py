"""What must hold in an asynchronous run, whatever happens: watched from outside, message by message.

Nothing is taken over from the machines that they might get wrong: versions follow from the bytes of the
models that the clients trained on, holders from the reports that arrived, sums from Python's integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightsecagg.errors import AbortReason
from lightsecagg.protocol import messages as m
from lightsecagg.protocol.actions import SERVER
from lightsecagg.protocol.buffered.results import ListResult
from lightsecagg.protocol.buffered.server import BufferedServer
from lightsecagg.protocol.transitions import BufferStage
from lightsecagg.protocol.wire import from_client, from_server
from lightsecagg.quantize import FixedPoint
from lightsecagg.simulation.buffered import Process
from lightsecagg.simulation.buffered_plan import RunPlan
from lightsecagg.simulation.chaos import FlawError
from lightsecagg.simulation.schedule import check_mean

Name = tuple[int, int]
"""(client, upload)"""


class Promises:
    """One run's. Every method raises ``FlawError`` where a promise is broken.

    Args:
        plan: the run's numbers.
        quantizer: the run's.
        answer_parts: bytes of each part of an answer.
    """

    def __init__(self, plan: RunPlan, quantizer: FixedPoint, answer_parts: Sequence[int]) -> None:
        self._plan = plan
        self._quantizer = quantizer
        self._answer_parts = answer_parts
        self.version = -1
        """Versions that were published, less one."""
        self.alive: set[int] = set()
        """Clients that the server knows."""
        self.absent: set[int] = set()
        """Those of them whom it knows to be away."""
        self.cohorts: dict[Name, tuple[int, ...]] = {}
        """To whom a mask was to be dealt."""
        self.lists: dict[int, m.UpdateList] = {}
        """Every list that the server announced, by its number."""
        self.malformed: set[int] = set()
        """Clients that sent what no honest one does."""
        self.spent: set[Name] = set()
        """Uploads that no list may name any more."""
        self._trained: dict[Name, tuple[int, list[int]]] = {}
        self._open: dict[int, int] = {}
        self._uploaded: dict[Name, dict[int, bytes]] = {}
        self._whole: set[Name] = set()
        self._holders: dict[Name, set[int]] = {}
        self._listed: set[Name] = set()
        self._certified: set[int] = set()
        self._standing: set[int] = set()
        self._signed: set[tuple[int, int]] = set()
        self._answered: set[tuple[int, Name]] = set()
        self._parts: dict[tuple[int, int], int] = {}
        self._arrived: dict[int, int] = {}

    # What the simulation tells.

    def joined(self, number: int) -> None:
        """The server took the client's key."""
        self.alive.add(number)
        self.absent.discard(number)

    def dropped(self, number: int) -> None:
        """The client is out; it holds nothing any more."""
        self.alive.discard(number)
        self.absent.discard(number)
        self._standing.discard(number)
        self._open.pop(number, None)
        for holders in self._holders.values():
            holders.discard(number)

    def trained(self, name: Name, version: int, vector: list[int]) -> None:
        """The client hands over what it trained on this version."""
        self._trained[name] = version, vector

    def published(self) -> None:
        """The server was told to publish a version."""
        self.version += 1

    def completed(self, number: int) -> None:
        """The server has a client's update, whole."""
        name = number, self._open.get(number, -1)
        if name not in self._trained or name in self._whole:
            raise FlawError(f"the server took in an update of client {number} that none was due of")
        self._whole.add(name)

    # What passes on the network.

    def watch(self, sender: int, receiver: int, raw: bytes | memoryview) -> None:
        """A message was sent."""
        if sender == SERVER:
            self._watch_server(receiver, from_server(raw))
        else:
            self._watch_client(sender, from_client(raw))

    def _watch_server(self, receiver: int, message: m.FromServer) -> None:
        match message:
            case m.UploadStart(number, version, cohort):
                if version != self.version:
                    raise FlawError(f"client {receiver} is started on version {version}, not the newest")
                name = receiver, number
                self._open[receiver] = number
                self._holders[name] = {receiver}
                self.cohorts[name] = tuple(member.rank for member in cohort)
            case m.ListAnnounced(updates):
                self._announced(receiver, updates)
            case m.ListCertificate(updates):
                if self.lists.get(updates.number) != updates or receiver not in self._standing:
                    raise FlawError(f"client {receiver} got a certificate of a list that it was not shown")
                self._certified.add(updates.number)
            case m.Spent(masks):
                self.spent.update(masks)
                for name in masks:
                    self._holders.pop(name, None)
            case m.RoundEnd(number) if self._open.get(receiver) == number:
                del self._open[receiver]

    def _watch_client(self, sender: int, message: m.FromClient) -> None:
        match message:
            case m.MaskedUpdate(number, _, index, data):
                parts = self._uploaded.setdefault((sender, number), {})
                if parts.setdefault(index, bytes(data)) != data and sender not in self.malformed:
                    raise FlawError(f"client {sender} uploaded two different vectors as {number}")
            case m.Endorse(number):
                if (sender, number) in self._signed:
                    raise FlawError(f"client {sender} signed list {number} twice")
                self._signed.add((sender, number))
            case m.AggregateEncodedMask(number, index):
                self._answers(sender, number, index)

    def _answers(self, sender: int, number: int, index: int) -> None:
        if number not in self._certified:
            raise FlawError(f"client {sender} answers for list {number}, of which there is no certificate")
        if index != self._parts.get((sender, number), 0):
            raise FlawError(f"client {sender} sent part {index} of its answer to list {number} twice")
        self._parts[sender, number] = index + 1
        if index:
            return
        for name in _names(self.lists[number]):
            if (sender, name) in self._answered:
                raise FlawError(f"client {sender} answered twice for upload {name}")
            self._answered.add((sender, name))

    def arrived(self, sender: int, message: m.FromClient, server: BufferedServer) -> None:
        """The server is about to take a message."""
        match message:
            case m.ShareHeld(mask) if (mask.client, mask.upload) in self._holders:
                self._holders[mask.client, mask.upload].add(sender)
            case m.AggregateEncodedMask(number, index, data) if (
                number == server.list_number and server.stage is BufferStage.RECOVERING
            ):
                self._arrived[sender] = self._arrived.get(sender, 0) + (
                    len(data) == self._answer_parts[index]
                )
            case m.Withdraw(number) if self._open.get(sender) == number:
                del self._open[sender]

    def is_late(self, sender: int, message: m.FromClient, server: BufferedServer) -> bool:
        """Whether a message that the server has taken once must have no effect any more."""
        match message:
            case m.SealedSeeds(mask) | m.EncodedMask(mask):
                return self._open.get(sender) != mask.upload
            case m.UpdateReady(number) | m.MaskedUpdate(number) | m.Withdraw(number):
                return self._open.get(sender) != number
            case m.ShareHeld(mask):
                return (mask.client, mask.upload) in self.spent
            case m.Endorse(number):
                return number < server.list_number or server.stage is not BufferStage.ENDORSING
            case m.AggregateEncodedMask(number):
                ended = server.stage in (BufferStage.PUBLISHING, BufferStage.COLLECTING)
                return number < server.list_number or ended
            case _:
                return False

    # Lists.

    def _announced(self, receiver: int, updates: m.UpdateList) -> None:
        known = self.lists.get(updates.number)
        if known is None:
            self._begin_list(updates)
        elif known != updates:
            raise FlawError(f"two lists have number {updates.number}")
        if receiver not in self._standing:
            raise FlawError(f"list {updates.number} was shown to client {receiver}, which lacks shares of it")

    def _begin_list(self, updates: m.UpdateList) -> None:
        names = _names(updates)
        what = f"list {updates.number} {names}"
        if updates.number != len(self.lists) + 1 or updates.version != self.version:
            raise FlawError(f"{what} at version {updates.version} is not the next at {self.version}")
        if len(names) != self._plan.buffering.buffer_size or len(set(names)) != len(names):
            raise FlawError(f"{what} has not K distinct entries")
        if again := self._listed & set(names):
            raise FlawError(f"{what} names updates of earlier lists: {sorted(again)}")
        if unusable := set(names) - (self._whole - self.spent):
            raise FlawError(f"{what} names updates that are not there: {sorted(unusable)}")
        for entry in updates.entries:
            if entry.weight != self._weight((entry.client, entry.upload)):
                raise FlawError(f"{what} weighs upload {entry.upload} by {entry.weight}")
        self._check_crowd(what, updates.entries)
        self._standing = self.alive.intersection(*(self._holders[name] for name in names))
        if len(self._standing - self.absent) < self._plan.buffering.target_survivors:
            raise FlawError(f"{what} is held by {sorted(self._standing - self.absent)} only")
        self.lists[updates.number] = updates
        self._listed.update(names)
        self._arrived = {}

    def _check_crowd(self, what: str, entries: Iterable[m.Listed]) -> None:
        crowds: dict[int, set[int]] = {}
        for entry in entries:
            crowds.setdefault(entry.weight, set()).add(entry.client)
        if len(set().union(*crowds.values())) < self._plan.min_buffer_clients:
            raise FlawError(f"{what} has too few distinct clients")
        alone = self._plan.buffering.privacy_threshold + 2 if self._plan.strict_weights else 1
        if min(map(len, crowds.values())) < alone:
            raise FlawError(f"{what} has a weight with too few clients")

    def _staleness(self, name: Name) -> int:
        return self.version - self._trained[name][0]

    def _weight(self, name: Name) -> int | None:
        weights, staleness = self._plan.buffering.weights, self._staleness(name)
        return weights[staleness] if staleness < len(weights) else None

    def check_result(self, result: ListResult) -> None:
        """A list was decoded: the exact oracle."""
        number = max(self.lists)
        names = [(entry.client, entry.upload) for entry in result.entries]
        if number not in self._certified or names != _names(self.lists[number]):
            raise FlawError(f"{names} was decoded, but list {number} was certified")
        if result.version != self.version:
            raise FlawError(f"the list's version is {result.version}, not {self.version}")
        total = [0] * len(self._trained[names[0]][1])
        for entry, name in zip(result.entries, names, strict=True):
            weight, staleness = self._weight(name), self._staleness(name)
            if (entry.weight, entry.staleness) != (weight, staleness):
                raise FlawError(f"upload {name} counts as {entry}, not {weight} at {staleness} versions")
            vector = self._trained[name][1]
            total = [done + entry.weight * new for done, new in zip(total, vector, strict=True)]
        check_mean(result.mean, result.total_weight, self._quantizer, total)

    def check_failure(self, reason: AbortReason, by_deadline: bool) -> None:
        """A list failed."""
        able = self._able()
        if not by_deadline and len(able) >= self._plan.buffering.target_survivors:
            raise FlawError(f"the list failed ({reason.value}), but {sorted(able)} could finish it")

    def check_server(self, server: BufferedServer) -> None:
        """After whatever the server did."""
        if len(server.slot_holders) > self._plan.slots:
            raise FlawError(f"more than {self._plan.slots} upload slots are out")
        if server.stage in (BufferStage.ENDORSING, BufferStage.RECOVERING):
            able = self._able()
            if len(able) < self._plan.buffering.target_survivors:
                raise FlawError(f"{server.stage.value} goes on, but only {sorted(able)} can finish it")

    def _able(self) -> set[int]:
        """Who may still finish the list under way, or has done its part."""
        whole = {number for number, count in self._arrived.items() if count == len(self._answer_parts)}
        return self._standing | whole

    # The end.

    def check_rest(self, server: BufferedServer, processes: Mapping[int, Process]) -> None:
        """Nothing is under way: what is held now is what later lists may name, and nothing else.

        It looks inside the machines, for what they do not show is what could be forgotten there.

        Args:
            server: its machine, with no list under way.
            processes: of the clients that are there.
        """
        known = server._known
        waiting = {upload.key for upload in (*server._uploads.values(), *server._buffer)}
        if not known.keys() == server._tallies.keys() == waiting:
            raise FlawError(f"the server keeps {sorted(known)}, but only {sorted(waiting)} may be listed")
        if spent := known.keys() & self.spent:
            raise FlawError(f"the server keeps {sorted(spent)} after saying that they are spent")
        for number, process in processes.items():
            holder = process.holder
            held = set(holder._holdings) | {(number, upload) for upload in holder._own}
            due = {name for name, upload in known.items() if number in upload.cohort}
            if useless := held - due:
                raise FlawError(f"client {number} still holds something of {sorted(useless)}")
            counted = {name for name, upload in known.items() if number in upload.holders}
            if missing := counted - holder.held:
                raise FlawError(f"client {number} counts as a holder of {sorted(missing)}")
            if len(holder._keys) > 2:
                raise FlawError(f"client {number} still holds keys that no share can come sealed for")
            if holder._stand.chosen:
                raise FlawError(f"client {number} still holds shares of a list that has ended")


def _names(updates: m.UpdateList) -> list[Name]:
    return [(entry.client, entry.upload) for entry in updates.entries]
