"""The GRPC carrier: one long-lived bidirectional stream of raw bytes per carrier, opened by the client."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
from collections.abc import Mapping
from typing import Any

import grpc

from lightsecagg.comm.base import Backend, OnWaiting
from lightsecagg.comm.client import LinkTransport
from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.frame import MAX_FRAME
from lightsecagg.comm.link import LinkSettings
from lightsecagg.comm.server import LinkHub
from lightsecagg.errors import CommError, ConfigError

_log = logging.getLogger("lightsecagg")

_SERVICE = "lightsecagg.Link"
_METHOD = "Carry"
_FINISH_TIMEOUT = 1.0  # seconds for the last frames to leave
_SIZES = [
    ("grpc.max_send_message_length", MAX_FRAME),
    ("grpc.max_receive_message_length", MAX_FRAME),
]


def _is_cancelled() -> bool:
    """Whether this task is being cancelled; grpc.aio raises CancelledError for an ended stream as well."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _StreamCarrier(Carrier):
    """What both ends share: `stream` is the client's call or the server's context."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def read(self) -> bytes | None:
        try:
            frame = await self._stream.read()
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            return None
        except (grpc.RpcError, grpc.aio.InternalError, grpc.aio.UsageError, asyncio.InvalidStateError):
            return None
        return None if frame is grpc.aio.EOF else frame

    async def write(self, frame: bytes) -> None:
        try:
            await self._stream.write(frame)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise ConnectionError("the stream was cancelled") from None
        except (
            grpc.RpcError,
            grpc.aio.InternalError,
            grpc.aio.UsageError,
            asyncio.InvalidStateError,
        ) as error:
            raise ConnectionError(str(error)) from error

    async def close(self) -> None:
        """A server's stream ends when its handler returns."""


class _ClientCarrier(_StreamCarrier):
    def __init__(self, channel: Any, call: Any) -> None:
        super().__init__(call)
        self._channel = channel

    async def finish(self) -> None:
        with contextlib.suppress(TimeoutError, grpc.RpcError, asyncio.InvalidStateError):
            async with asyncio.timeout(_FINISH_TIMEOUT):
                await self._stream.done_writing()
                await self._stream.code()

    async def close(self) -> None:
        self._stream.cancel()
        # Once the status is there, no read or write of this call can still report to a closed event loop.
        with contextlib.suppress(TimeoutError, grpc.RpcError, asyncio.InvalidStateError):
            async with asyncio.timeout(_FINISH_TIMEOUT):
                await self._stream.code()
        await self._channel.close()


async def dial(target: str, options: list[tuple[str, Any]]) -> Carrier:
    """Open a stream to the server; ConnectionError where there is none."""
    channel = grpc.aio.insecure_channel(target, options=options)
    try:
        call = channel.stream_stream(f"/{_SERVICE}/{_METHOD}")()
        await call.wait_for_connection()
    except grpc.RpcError as error:
        await channel.close()
        raise ConnectionError(_explain(error)) from error
    except BaseException:
        await channel.close()
        raise
    return _ClientCarrier(channel, call)


def _explain(error: Any) -> str:
    details = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
    return str(details).rsplit("last error: ", 1)[-1]


class GrpcHub(LinkHub):
    """Listens on host:port; port 0 takes a free one, which `address` tells."""

    def __init__(self, host: str, port: int, settings: LinkSettings) -> None:
        super().__init__(settings)
        self._host = host
        self._port = port
        self._server: Any = None
        self._most_streams = 2 * settings.max_peers  # each peer may be coming back while its old stream ends

    @property
    def address(self) -> str:
        return _join(self._host, self._port)

    async def listen(self) -> None:
        # SO_REUSEPORT would let a second server on the same port start, and take half of the clients.
        options = [*_SIZES, ("grpc.so_reuseport", 0)]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=self._most_streams)
        handler = grpc.stream_stream_rpc_method_handler(self._carry)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
        try:
            port = server.add_insecure_port(self.address)
        except RuntimeError as error:
            await server.stop(None)
            raise CommError(
                f"cannot listen on {self.address}: the port is in use, or the address is not this machine's; "
                "stop the other server, or choose another comm_args.grpc.port (0 takes a free one)"
            ) from error
        await server.start()
        self._server, self._port = server, port

    async def unlisten(self) -> None:
        if self._server is not None:
            await self._server.stop(_FINISH_TIMEOUT)

    async def _carry(self, _requests: Any, context: Any) -> None:
        await context.send_initial_metadata(())  # the client waits for it to know that somebody is there
        await self.serve(_StreamCarrier(context))


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(settings: Mapping[str, object]) -> tuple[str, int]:
    """Host and port, once it is clear that nothing leaves this machine unencrypted by accident."""
    host, port = settings.get("host", "127.0.0.1"), settings.get("port", 8890)
    if not isinstance(host, str) or not host:
        raise ConfigError(f"comm_args.grpc.host: wanted a name or an address, found {host!r}")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 2**16:
        raise ConfigError(f"comm_args.grpc.port: wanted 0 to 65535, found {port!r}")
    if not _is_loopback(host):
        if settings.get("insecure") is not True:
            raise ConfigError(
                f"comm_args.grpc.host: {host} is not a loopback address, and TLS is not in this version (it "
                "comes with a later one): everybody on the way could read and alter the frames. Shares and "
                "updates are sealed or masked above the carrier; if that is enough, or the network is "
                "yours (a VPN, an SSH tunnel), set comm_args.grpc.insecure: true"
            )
        _log.warning("gRPC with %s is not encrypted (comm_args.grpc.insecure: true)", host)
    return host, port


def _make_hub(settings: Mapping[str, object], link: LinkSettings) -> GrpcHub:
    return GrpcHub(*_address(settings), link)


def _make_transport(
    settings: Mapping[str, object], link: LinkSettings, on_waiting: OnWaiting, rng: random.Random
) -> LinkTransport:
    host, port = _address(settings)
    target = _join(host, port)
    # Own connections per attempt: a shared one would keep gRPC's own back-off between our attempts.
    options: list[tuple[str, Any]] = [*_SIZES, ("grpc.use_local_subchannel_pool", 1)]
    if _is_loopback(host):
        options.append(("grpc.enable_http_proxy", 0))

    async def connect() -> Carrier:
        return await dial(target, options)

    return LinkTransport(connect, target, link, on_waiting, rng)


BACKEND = Backend(_make_hub, _make_transport)
