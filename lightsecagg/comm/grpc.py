"""The GRPC carrier: one long-lived bidirectional stream of raw bytes per carrier, opened by the client."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from resource import RLIMIT_NOFILE, getrlimit
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from lightsecagg.comm.base import Backend, OnWaiting
from lightsecagg.comm.client import LinkTransport
from lightsecagg.comm.diagnosis import diagnose
from lightsecagg.comm.driver import Carrier
from lightsecagg.comm.frame import MAX_FRAME
from lightsecagg.comm.link import LinkSettings
from lightsecagg.comm.server import LinkHub
from lightsecagg.comm.tls import TlsFiles, check_plaintext, is_loopback, name_in, read_files
from lightsecagg.errors import CommError, ConfigError

_SECTION = "comm_args.grpc"
_SERVICE = "lightsecagg.Link"
_METHOD = "Carry"
_GREETING = ("lightsecagg-link", "1")  # metadata for which a client waits to know that the server is there
_FINISH_TIMEOUT = 1.0  # seconds for the last frames to leave
_HEALTH_CHECKS = 16  # at a time, for which there is room beside the clients' streams
_STREAMS_EACH = 8  # of one connection: a client has one
_SIZES = [
    ("grpc.max_send_message_length", MAX_FRAME),
    ("grpc.max_receive_message_length", MAX_FRAME),
]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and the files with which both ends speak TLS there; None for plaintext."""

    host: str
    port: int
    files: TlsFiles | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_cancelled() -> bool:
    """Whether this task is being cancelled; grpc.aio raises CancelledError for an ended stream as well."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _StreamCarrier(Carrier):
    """What both ends share: `stream` is the client's call or the server's context."""

    is_reliable = True

    def __init__(self, stream: Any, authenticated_as: str | None = None) -> None:
        self.authenticated_as = authenticated_as
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


async def dial(server: Address, options: Sequence[tuple[str, Any]] = ()) -> Carrier:
    """Open a stream to the server; OSError as in `Dial`."""
    channel = _channel(server, options)
    try:
        call = channel.stream_stream(f"/{_SERVICE}/{_METHOD}")()
        if _GREETING[0] in await call.initial_metadata():
            return _ClientCarrier(channel, call)
        code, details = await call.code(), await call.details()
    except BaseException:
        await channel.close()
        raise
    await channel.close()
    raise await _why(code, str(details), server)


def _channel(server: Address, options: Sequence[tuple[str, Any]]) -> Any:
    # Own connections per attempt: a shared one would keep gRPC's own back-off between our attempts.
    options = [*options, *_SIZES, ("grpc.use_local_subchannel_pool", 1)]  # the first of two values counts
    if is_loopback(server.host):
        options.append(("grpc.enable_http_proxy", 0))
    if (files := server.files) is None:
        return grpc.aio.insecure_channel(str(server), options)
    credentials = grpc.ssl_channel_credentials(files.ca, files.key, files.cert)
    return grpc.aio.secure_channel(str(server), credentials, options)


async def _why(code: grpc.StatusCode, details: str, server: Address) -> OSError:
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return PermissionError(
            f"a gRPC server of another kind answers there: check {_SECTION}.host and {_SECTION}.port"
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        reason = await diagnose(server.host, server.port, server.files)
        if reason is not None:
            return PermissionError(reason)
    for sign, words in _PLAIN_WORDS.items():
        if sign in details:
            return ConnectionError(words)
    return ConnectionError(details.rsplit("last error: ", 1)[-1] or code.name)


_PLAIN_WORDS = {  # for what most people meet first
    "Connection refused": "nobody listens there",
    "hostname lookup": f"no such host; check {_SECTION}.host",
}


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """Says whether the server takes clients. Nobody may watch: that would hold a client's place for good."""

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: ARG002, N802 (the library's)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask with Check")


class GrpcHub(LinkHub):
    """Listens on host:port; port 0 takes a free one, which `address` tells."""

    def __init__(self, where: Address, settings: LinkSettings) -> None:
        super().__init__(settings)
        self._where = where
        self._server: Any = None
        self._health = _Health()

    @property
    def address(self) -> str:
        return str(self._where)

    @property
    def why_nameless(self) -> str | None:
        is_mutual = self._where.files is not None and self._where.files.ca is not None
        return None if is_mutual else f"set {_SECTION}.ca, so that clients must show a certificate"

    async def listen(self) -> None:
        streams = 2 * self._settings.max_peers  # each peer may be coming back while its old stream ends
        connections = min(streams + _HEALTH_CHECKS, getrlimit(RLIMIT_NOFILE)[0] // 2)
        patience = int(1000 * self._settings.heartbeat_timeout)
        options = [
            *_SIZES,
            # With SO_REUSEPORT a second server on the same port would start, and take half of the clients.
            ("grpc.so_reuseport", 0),
            # Who connects and says nothing, or opens no stream, is let go.
            ("grpc.server_handshake_timeout_ms", patience),
            ("grpc.max_connection_idle_ms", patience),
            # A crowd of connections takes neither all streams nor all of this process's files.
            ("grpc.max_concurrent_streams", _STREAMS_EACH),
            ("grpc.max_allowed_incoming_connections", connections),
        ]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=streams + _HEALTH_CHECKS)
        handler = grpc.stream_stream_rpc_method_handler(self._carry)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            port = _add_port(server, self._where)
        except RuntimeError as error:
            await server.stop(None)
            raise CommError(
                f"cannot listen on {self.address}: the port is in use, or the address is not this machine's; "
                f"stop the other server, or choose another {_SECTION}.port (0 takes a free one)"
            ) from error
        await server.start()
        await self._health.set(_SERVICE, HealthCheckResponse.SERVING)
        self._server, self._where = server, replace(self._where, port=port)

    async def unlisten(self) -> None:
        if self._server is not None:
            await self._server.stop(_FINISH_TIMEOUT)

    async def close(self, reason: str = "goodbye") -> None:
        await self._health.enter_graceful_shutdown()
        await super().close(reason)

    async def _carry(self, _requests: Any, context: Any) -> None:
        await context.send_initial_metadata((_GREETING,))
        shown = context.auth_context().get("x509_pem_cert")  # there only if it was asked for and checked
        await self.serve(_StreamCarrier(context, name_in(shown[0]) if shown else None))


def _add_port(server: Any, where: Address) -> int:
    """The port that was taken; RuntimeError where none could be."""
    if (files := where.files) is None:
        return int(server.add_insecure_port(str(where)))
    credentials = grpc.ssl_server_credentials(
        [(files.key, files.cert)], root_certificates=files.ca, require_client_auth=files.ca is not None
    )
    return int(server.add_secure_port(str(where), credentials))


def _address(settings: Mapping[str, object], *, needed: str) -> Address:
    """Where to listen or to dial, once it is clear that nothing leaves this machine unencrypted by accident.

    Args:
        needed: the file without which this end has no use for the others.
    """
    host, port = settings.get("host", "127.0.0.1"), settings.get("port", 8890)
    if not isinstance(host, str) or not host:
        raise ConfigError(f"{_SECTION}.host: wanted a name or an address, found {host!r}")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 2**16:
        raise ConfigError(f"{_SECTION}.port: wanted 0 to 65535, found {port!r}")
    files = read_files(_SECTION, settings)
    if files is None:
        check_plaintext(_SECTION, host, settings)
    elif settings.get(needed) is None:
        raise ConfigError(f"{_SECTION}.{needed}: {_NEEDED[needed]}; found none")
    elif files.cert is not None:
        _check_kind(files.cert)
    return Address(host, port, files)


_NEEDED = {
    "ca": "wanted the authority that signed the server's certificate, as this client has one of its own (a "
    "bundle like /etc/ssl/certs/ca-certificates.crt can be named)",
    "cert": "wanted the server's own certificate and key, as it asks for the clients'",
}


def _check_kind(cert: bytes) -> None:
    key = x509.load_pem_x509_certificate(cert).public_key()
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise ConfigError(
            f"{_SECTION}.cert: wanted a certificate of an RSA or ECDSA key, for gRPC; found one "
            f"of {type(key).__name__}; `openssl ecparam -name prime256v1 -genkey` makes a key that works"
        )


def _make_hub(settings: Mapping[str, object], link: LinkSettings) -> GrpcHub:
    return GrpcHub(_address(settings, needed="cert"), link)


def _make_transport(
    settings: Mapping[str, object], link: LinkSettings, on_waiting: OnWaiting, rng: random.Random
) -> LinkTransport:
    server = _address(settings, needed="ca")
    return LinkTransport(partial(dial, server), str(server), link, on_waiting, rng)


BACKEND = Backend(_make_hub, _make_transport)
