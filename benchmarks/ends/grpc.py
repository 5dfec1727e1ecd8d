"""gRPC's own ends: a bidirectional stream of raw bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc

from benchmarks.ends.scenario import LARGEST, Buffer, OnMessage, ServerEnd, Spec, Worker

_SERVICE, _METHOD = "bench.Blocks", "Carry"
_OPTIONS = [("grpc.max_send_message_length", LARGEST), ("grpc.max_receive_message_length", LARGEST)]


def _read_files(spec: Spec) -> tuple[bytes, ...] | None:
    """Authority, key and certificate, if there are any."""
    if "ca" not in spec.settings:
        return None
    return tuple(Path(spec.settings[name]).read_bytes() for name in ("ca", "key", "cert"))


class Server(ServerEnd):
    """One stream a client; each is read by its own handler."""

    def __init__(self, spec: Spec) -> None:
        self._port, self._files = spec.settings["port"], _read_files(spec)
        self._streams: list[Any] = []
        self._server: Any = None

    async def listen(self, on_message: OnMessage) -> None:
        async def carry(_requests: Any, context: Any) -> None:
            peer = len(self._streams)
            self._streams.append(context)
            while (data := await context.read()) is not grpc.aio.EOF:
                on_message(peer, data)

        self._server = grpc.aio.server(options=_OPTIONS)
        handlers = {_METHOD: grpc.stream_stream_rpc_method_handler(carry)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        where = f"127.0.0.1:{self._port}"
        if self._files is not None:
            ca, key, cert = self._files
            credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
            self._server.add_secure_port(where, credentials)
        else:
            self._server.add_insecure_port(where)
        await self._server.start()

    async def send(self, peer: int, data: Buffer) -> None:
        await self._streams[peer].write(data)


def work(spec: Spec) -> None:
    """Be a client until the server is gone."""
    asyncio.run(_work(f"127.0.0.1:{spec.settings['port']}", _read_files(spec)))


async def _work(where: str, files: tuple[bytes, ...] | None) -> None:
    if files is not None:
        channel = grpc.aio.secure_channel(where, grpc.ssl_channel_credentials(*files), _OPTIONS)
    else:
        channel = grpc.aio.insecure_channel(where, _OPTIONS)
    worker, call = Worker(), channel.stream_stream(f"/{_SERVICE}/{_METHOD}")()
    await call.write(worker.hello)
    while (data := await call.read()) is not grpc.aio.EOF:
        for answer in worker.answers(data):
            await call.write(answer)
