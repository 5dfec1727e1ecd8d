"""Who is let in: names that the carrier knows, and crowds that never say who they are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lightsecagg.comm.base import make_transport
from lightsecagg.comm.local import LocalCarrier, LocalHub
from lightsecagg.managers.carrier import carrier_settings, link_settings
from lightsecagg.managers.participation import RefusedError
from tests.managers.test_runs import PATIENCE, Stage, make_settings


def known_as(monkeypatch: pytest.MonkeyPatch, names: list[str | None]) -> None:
    """Let the local carrier prove these names, connection by connection."""
    serve, remaining = LocalHub.serve, iter(names)

    async def prove(hub: LocalHub, carrier: LocalCarrier) -> None:
        carrier.authenticated_as = next(remaining)
        await serve(hub, carrier)

    monkeypatch.setattr(LocalHub, "serve", prove)


def stage_that_asks(folder: Path) -> Stage:
    settings = make_settings(3)
    comm_args = settings.comm_args.model_copy(update={"authenticated_as": "client-{rank}"})
    return Stage(folder, settings.model_copy(update={"comm_args": comm_args}))


@pytest.mark.parametrize(("name", "said"), [("client-2", "'client-2'"), (None, "nobody")])
async def test_rank_that_the_carrier_knows_by_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, said: str
) -> None:
    known_as(monkeypatch, [name, "client-1", "client-2", "client-3"])
    stage = stage_that_asks(tmp_path)
    server = stage.server()
    serving = asyncio.create_task(server.run())
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(
            RefusedError, match=f"not_authenticated.* must be 'client-1' .* knows {said} there"
        ):
            await stage.client(1).run()
        joined = []
        for rank in (1, 2, 3):  # in turn: each meets the name that is its own
            joined.append(asyncio.create_task(stage.client(rank).run()))
            await server._session.until(lambda rank=rank: rank in server._session.clients, PATIENCE)  # type: ignore[misc]
        assert await asyncio.gather(serving, *joined) == [None] * 4


async def test_name_is_not_asked_for_unless_the_settings_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_as(monkeypatch, ["mallory"] * 3)
    stage = Stage(tmp_path, make_settings(3))
    runs = [stage.server().run(), *(stage.client(rank).run() for rank in (1, 2, 3))]
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*runs) == [None] * 4


async def test_crowd_that_says_nothing_keeps_nobody_out(tmp_path: Path) -> None:
    stage = Stage(tmp_path, make_settings(3))
    server = stage.server()
    serving = asyncio.create_task(server.run())
    settings, link = carrier_settings(stage.settings, "r1", 1), link_settings(stage.settings)
    crowd = [make_transport("LOCAL", settings, link) for _ in range(300)]
    async with asyncio.timeout(PATIENCE):
        for stranger in crowd:
            await stranger.connect()
        assert len(server._session._joining) <= 64 + 3
        results = await asyncio.gather(serving, *(stage.client(rank).run() for rank in (1, 2, 3)))
        await asyncio.gather(*(stranger.close() for stranger in crowd))
    assert results == [None] * 4
