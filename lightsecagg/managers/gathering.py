"""The beginning of a run: waiting for its first clients."""

from __future__ import annotations

from lightsecagg.errors import RunStopped
from lightsecagg.managers.session import Session
from lightsecagg.settings import Settings


class Gathering:
    """Waits until there are enough clients to begin with. Belongs to one event loop."""

    def __init__(self, session: Session, settings: Settings) -> None:
        self._session = session
        self._wanted = settings.device_args.worker_num
        self._least = settings.min_joined
        # Where clients may join at any time nobody waits for the last of them.
        self._enough = self._least if settings.asynchronous else self._wanted
        self._timeout = settings.secure_aggregation_args.join_timeout
        self._most = self._wanted  # clients that can join at all

    def expect_at_most(self, clients: int) -> None:
        """Wait for no more clients than these: the others have ended."""
        self._most = clients
        self._session.look_again()

    async def wait(self) -> None:
        """Wait for the first clients.

        Raises:
            RunStopped: too few come.
        """
        is_settled = await self._session.until(self._is_settled, self._timeout)
        joined = len(self._session.free())
        if joined < self._least and is_settled:
            raise RunStopped(
                f"too many clients have ended before they joined; at least {self._least} are needed"
            )
        if joined < self._least:
            raise RunStopped(
                f"{joined} of {self._wanted} clients joined within {self._timeout:g} s "
                f"(secure_aggregation_args.join_timeout); at least {self._least} are needed"
            )

    def _is_settled(self) -> bool:
        return self._most < self._least or len(self._session.free()) >= min(self._enough, self._most)
