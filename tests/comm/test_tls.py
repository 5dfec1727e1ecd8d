"""Certificate files are checked before use, and a certificate's name is read as who it is."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from lightsecagg.comm.tls import TlsFiles, name_in, read_files, why_untrusted
from lightsecagg.errors import ConfigError
from tests.certificates import Authority, Certificate, self_signed

SECTION = "comm_args.grpc"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Certificate:
    return authority.issue("server")


def read(settings: dict[str, object]) -> TlsFiles:
    files = read_files(SECTION, settings)
    assert files is not None
    return files


def refusal(settings: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        read_files(SECTION, settings)
    return str(caught.value)


def test_files_that_fit_are_read_and_no_files_are_no_tls(authority: Authority, server: Certificate) -> None:
    files = read(server.settings(authority.ca))
    assert (files.ca, files.cert, files.key) == tuple(
        path.read_bytes() for path in (authority.ca, server.cert, server.key)
    )
    assert read({"ca": authority.ca}).cert is None
    assert read_files(SECTION, {"host": "127.0.0.1", "ca": None}) is None


def test_texts_of_files_are_not_shown(authority: Authority, server: Certificate) -> None:
    shown = repr(read(server.settings(authority.ca)))
    assert str(server.key) in shown and "PRIVATE" not in shown


@pytest.mark.parametrize(("given", "missing"), [("cert", "key"), ("key", "cert")])
def test_half_a_pair_is_refused(server: Certificate, given: str, missing: str) -> None:
    text = refusal({given: server.settings()[given]})
    assert text == f"{SECTION}.{missing}: wanted a file, as {SECTION}.{given} is set; found none"


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_missing_file_is_named(authority: Authority, server: Certificate, name: str) -> None:
    text = refusal({**server.settings(authority.ca), name: "/nowhere/x.pem"})
    assert text == f"{SECTION}.{name}: cannot read /nowhere/x.pem: No such file or directory"


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
@pytest.mark.parametrize(
    "content", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_file_that_is_no_pem_is_named(
    authority: Authority, server: Certificate, tmp_path: Path, name: str, content: bytes
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(content)
    text = refusal({**server.settings(authority.ca), name: str(wrong)})
    assert text.startswith(f"{SECTION}.{name}: wanted ") and str(wrong) in text


def test_path_that_is_no_text_is_refused() -> None:
    assert refusal({"ca": 7}) == f"{SECTION}.ca: wanted a path, found 7"


def test_key_of_another_certificate_is_refused(authority: Authority, server: Certificate) -> None:
    other = authority.issue("client-1")
    text = refusal({"cert": server.cert, "key": other.key})
    assert f"{SECTION}.key: wanted the key of {SECTION}.cert" in text and "KEY_VALUES_MISMATCH" in text


def test_key_with_a_passphrase_is_refused_without_asking_the_terminal(
    server: Certificate, tmp_path: Path
) -> None:
    key = serialization.load_pem_private_key(server.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    assert "without a passphrase" in refusal({"cert": server.cert, "key": locked})


def test_own_certificate_out_of_its_time_is_refused_at_start(authority: Authority) -> None:
    text = refusal(authority.issue_expired("server").settings())
    assert text.startswith(f"{SECTION}.cert: wanted a valid certificate") and "which expired on 20" in text
    early = authority.issue("early", days=(1, 30))
    assert "is this machine's clock right?" in refusal(early.settings())


def test_authority_that_expired_is_refused_unless_another_in_the_file_is_good(tmp_path: Path) -> None:
    good, old = Authority(tmp_path, "good"), Authority(tmp_path, "old", days=(-30, -1))
    assert f"{SECTION}.ca: wanted a valid certificate, found {old.ca}, which expired" in refusal(
        {"ca": old.ca}
    )
    both = tmp_path / "both.pem"
    both.write_bytes(old.ca.read_bytes() + good.ca.read_bytes())
    read({"ca": both})


def test_bundle_of_the_system_can_be_named() -> None:
    bundle = ssl.get_default_verify_paths().openssl_cafile
    if Path(bundle).exists():
        read({"ca": bundle})


def test_certificate_names_its_subject(authority: Authority, tmp_path: Path) -> None:
    assert name_in(authority.issue("client-1", hosts=()).cert.read_bytes()) == "client-1"
    assert name_in(self_signed(tmp_path, "client-2").cert.read_bytes()) == "client-2"
    assert name_in(authority.issue("", hosts=("one.org",)).cert.read_bytes()) == "one.org"
    assert name_in(authority.issue("", hosts=("one.org", "two.org")).cert.read_bytes()) is None
    assert name_in(authority.issue("", hosts=()).cert.read_bytes()) is None
    assert name_in(b"garbage") is None


UNTRUSTED = {
    "self-signed": f"not signed by an authority in {SECTION}.ca",
    "expired": "has expired: renew it at the server",
    "early": "not valid yet: set the clock",
    "elsewhere": f"not for localhost: set {SECTION}.host here",
    "good": "127.0.0.1 among its subject alternative names",
}


@pytest.mark.parametrize("what", UNTRUSTED)
async def test_untrusted_certificate_is_explained_with_the_way_out(
    authority: Authority, tmp_path: Path, what: str
) -> None:
    shown = {
        "self-signed": self_signed(tmp_path, "server"),
        "expired": authority.issue_expired("expired"),
        "early": authority.issue("early", days=(1, 2)),
        "elsewhere": authority.issue("elsewhere", hosts=("example.org",)),
        "good": authority.issue("good", hosts=("localhost",)),
    }[what]
    host = "127.0.0.1" if what == "good" else "localhost"
    assert UNTRUSTED[what] in await explanation(shown, read({"ca": authority.ca}), host)


async def explanation(shown: Certificate, files: TlsFiles, host: str) -> str:
    """What a client that has these files says of a server with that certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(shown.cert, shown.key)
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        await asyncio.open_connection(
            "127.0.0.1", server.sockets[0].getsockname()[1], ssl=files.client_context(), server_hostname=host
        )
    server.close()
    await server.wait_closed()
    return why_untrusted(caught.value, SECTION, host)
