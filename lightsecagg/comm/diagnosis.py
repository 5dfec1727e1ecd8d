"""Why gRPC could not connect: a second look at the server with the standard library's ssl, for better words.

gRPC reports an untrusted certificate in a line of its library's internals, and a refused client certificate
as "Socket closed". What is certain enough to give up on gets a reason here; what may pass gets none.
"""

from __future__ import annotations

import asyncio
import ssl

from lightsecagg.comm.tls import TlsFiles, name_in, why_untrusted

_SECTION = "comm_args.grpc"
_PATIENCE = 2.0  # seconds for all looks together
_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # an empty frame of type 4 on stream 0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS
_CHECK = f"check {_SECTION}.host and {_SECTION}.port"


async def diagnose(host: str, port: int, files: TlsFiles | None) -> str | None:
    """What is wrong at the server or here, and the way out; None where trying again may help.

    Args:
        files: what this client dials with; None without TLS.
    """
    try:
        async with asyncio.timeout(_PATIENCE):
            if files is None:
                return await _why_not_in_the_clear(host, port)
            return await _why_not_encrypted(host, port, files)
    except (OSError, TimeoutError):
        return None


async def _why_not_encrypted(host: str, port: int, files: TlsFiles) -> str | None:
    context = files.client_context()
    context.set_alpn_protocols(["h2"])
    try:
        protocol, answer = await _ask(host, port, context)
    except ssl.SSLCertVerificationError as error:
        return why_untrusted(error, _SECTION, host)
    except (ssl.SSLError, ConnectionError) as error:
        _, answer = await _ask(host, port, None)
        if _is_http2(answer):
            return (
                f"it speaks no TLS: set {_SECTION}.cert and {_SECTION}.key at the server, or, where nobody "
                f"listens on the way, remove {_SECTION}.ca here"
            )
        return _something_else(answer) or _refused_handshake(error)
    if protocol != "h2":
        return f"it speaks TLS but no HTTP/2, so it is no LightSecAgg server: {_CHECK}"
    return None if answer else _refused_certificate(files)


async def _why_not_in_the_clear(host: str, port: int) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # nothing is said to the server: only whether it answers counts
    context.verify_mode = ssl.CERT_NONE
    try:
        await _ask(host, port, context)
    except (ssl.SSLError, ConnectionError) as error:
        if not _is_alert(error):
            _, answer = await _ask(host, port, None)
            return None if _is_http2(answer) else _something_else(answer)
    return (
        f"it speaks TLS and this client does not: set {_SECTION}.ca to the file of the authority that signed "
        f"the server's certificate (and {_SECTION}.cert and {_SECTION}.key if it asks for this client's)"
    )


async def _ask(host: str, port: int, context: ssl.SSLContext | None) -> tuple[str | None, bytes]:
    """The protocol that TLS agreed on, and the answer to HTTP/2's first bytes: none where the server closes.

    Raises:
        OSError: there is no connection, or TLS (an ssl.SSLError) was not agreed on.
    """
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        tls = writer.get_extra_info("ssl_object")
        protocol = None if tls is None else tls.selected_alpn_protocol()
        writer.write(_PREFACE)
        return protocol, await reader.readexactly(len(_SETTINGS))
    except asyncio.IncompleteReadError as error:
        return protocol, error.partial
    except (ssl.SSLError, ConnectionError):
        return protocol, b""  # in TLS 1.3 a certificate is refused after the client's handshake
    finally:
        writer.transport.abort()


def _is_http2(answer: bytes) -> bool:
    return answer[3:4] == _SETTINGS[3:4] and answer[5:] == _SETTINGS[5:]


def _is_alert(error: Exception) -> bool:
    return isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")


def _something_else(answer: bytes) -> str | None:
    if not answer:
        return None
    what = "a web server" if answer.startswith(b"HTTP/") else f"something that begins with {answer!r}"
    return f"{what} answers there, no LightSecAgg server: {_CHECK}"


def _refused_handshake(error: Exception) -> str | None:
    """Up to TLS 1.2 an alert says what is refused; a connection that only breaks may do better next time."""
    if not _is_alert(error):
        return None
    return f"it refuses the TLS handshake ({error}): check {_SECTION}.cert and {_SECTION}.key here"


def _refused_certificate(files: TlsFiles) -> str:
    if files.cert is None:
        own = f"{_SECTION}.cert and {_SECTION}.key"
        return f"it asks for a certificate, and this client has none: set {own} here"
    return (
        f"it refuses this client's certificate (of {name_in(files.cert)}): {_SECTION}.cert must be valid and "
        f"signed by an authority in the server's {_SECTION}.ca"
    )
