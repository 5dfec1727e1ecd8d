"""Who is let in: names that the carrier knows, and crowds that never say who they are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lightsecagg.comm.base import make_transport
from lightsecagg.comm.local import LocalCarrier, LocalHub
from lightsecagg.errors import CommError, ConfigError, RunStopped
from lightsecagg.managers import newcomers
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
    monkeypatch.setattr(LocalHub, "why_nameless", None)


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


async def test_name_that_the_carrier_cannot_prove_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"authenticated_as: client-\{rank\} cannot be asked for here"):
        await stage_that_asks(tmp_path).server().run()


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
        assert len(server._session._newcomers) <= 64 + 3
        results = await asyncio.gather(serving, *(stage.client(rank).run() for rank in (1, 2, 3)))
        await asyncio.gather(*(stranger.close() for stranger in crowd))
    assert results == [None] * 4


async def test_client_that_is_crowded_out_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newcomers, "_MOST_JOINING", -3)  # no room at all
    stage = Stage(tmp_path, make_settings(3))
    server = stage.server()
    let_go, crowded_out = server._session._newcomers._let_go, []

    def note(peer: int) -> None:
        crowded_out.append(peer)
        if len(crowded_out) == 5:
            monkeypatch.setattr(newcomers, "_MOST_JOINING", 64)
        let_go(peer)

    monkeypatch.setattr(server._session._newcomers, "_let_go", note)
    async with asyncio.timeout(PATIENCE):
        runs = [server.run(), *(stage.client(rank).run() for rank in (1, 2, 3))]
        assert await asyncio.gather(*runs) == [None] * 4
    assert len(crowded_out) == 5


async def test_client_gives_up_a_crowded_server_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newcomers, "_MOST_JOINING", -3)
    settings = make_settings(3, join_timeout=4.0)
    comm_args = settings.comm_args.model_copy(update={"connect_timeout": 1.0})
    stage = Stage(tmp_path, settings.model_copy(update={"comm_args": comm_args}))
    serving = asyncio.create_task(stage.server().run())
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(CommError, match="a crowd of connections is at its door"):
            await stage.client(1).run()
        with pytest.raises(RunStopped):
            await serving


async def test_crowd_that_can_prove_no_name_costs_those_who_can_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newcomers, "_MOST_JOINING", -1)  # room for two
    known_as(monkeypatch, [None, "client-1", None, "client-2", None])
    stage = Stage(tmp_path, make_settings(3, join_timeout=1.0))
    server = stage.server()
    serving = asyncio.create_task(server.run())
    settings, link = carrier_settings(stage.settings, "r1", 1), link_settings(stage.settings)
    strangers = [make_transport("LOCAL", settings, link) for _ in range(5)]
    async with asyncio.timeout(PATIENCE):
        for stranger in strangers:
            await stranger.connect()
        with pytest.raises(RunStopped):
            await serving
        remaining = [n.authenticated_as for n in server._session._newcomers._joining.values()]
        await asyncio.gather(*(stranger.close() for stranger in strangers))
    assert remaining == ["client-1", "client-2"]


async def test_server_does_not_wait_for_clients_that_have_ended(tmp_path: Path) -> None:
    """Only a carrier that starts all processes together can know."""
    stage = Stage(tmp_path, make_settings(4, min_joined=3))
    server = stage.server()
    serving = asyncio.create_task(server.run())
    clients = [asyncio.create_task(stage.client(rank).run()) for rank in (1, 2, 3)]
    async with asyncio.timeout(PATIENCE):
        await server._session.until(lambda: len(server._session.clients) == 3, PATIENCE)
        server.expect_at_most(3)
        assert await asyncio.gather(serving, *clients) == [None] * 4


async def test_server_stops_when_fewer_are_left_than_it_needs(tmp_path: Path) -> None:
    server = Stage(tmp_path, make_settings(4)).server()
    serving = asyncio.create_task(server.run())
    await server._session.until(lambda: False, 0.1)
    server.expect_at_most(2)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(RunStopped, match="too many clients have ended before they joined"):
            await serving
