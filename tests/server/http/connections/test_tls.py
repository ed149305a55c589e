"""HTTPS: certificates that are shown, renewed, and refused at start."""

import shutil
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509

from engines.params.deploy import DeployParams
from server.commands import deploy
from server.http.connections.handshakes import MOST_HANDSHAKES
from server.http.connections.tls import WrongCertificate, read_certificate
from tests.certificates import write_certificate
from tests.server.process import ServerProcess
from tests.until import PATIENCE, until

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def shown(server: ServerProcess) -> str:
    """The name in the certificate that a new connection gets."""
    host, port = server.url.removeprefix("https://").split(":")
    certificate = x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())
    return certificate.subject.rfc4514_string()


def test_answers_and_streams_come_over_https(tmp_path: Path, start_echo: Callable[..., ServerProcess]) -> None:
    certificate, key = write_certificate(tmp_path)
    server = start_echo(params={"ssl_certfile": str(certificate), "ssl_keyfile": str(key)})
    assert server.url.startswith("https://127.0.0.1:")
    with httpx.Client(base_url=server.url, verify=trusting(certificate), timeout=PATIENCE) as client:
        until(lambda: client.get("/ready").status_code == 200)
        assert client.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]["content"] == "hello"
        assert client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text.endswith("data: [DONE]\n\n")
        assert client.get("/" + "x" * (17 << 10)).status_code == 414
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")  # nobody vouches for it
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{server.url.replace('https', 'http')}/health")
    server.signal()
    assert server.wait() == 0


def test_a_renewed_certificate_is_shown_after_sighup_and_a_spoilt_one_is_not(
    tmp_path: Path, start_echo: Callable[..., ServerProcess]
) -> None:
    certificate, key = write_certificate(tmp_path, "first")
    server = start_echo(params={"ssl_certfile": str(certificate), "ssl_keyfile": str(key)})
    with httpx.Client(base_url=server.url, verify=trusting(certificate), timeout=PATIENCE) as client:
        assert client.get("/health").status_code == 200
        other, its_key = write_certificate(tmp_path, "second")
        shutil.copy(other, certificate)
        server.signal(signal.SIGHUP)  # with the key of the first
        until(lambda: "the key is not that of the certificate" in "".join(server.log))
        assert shown(server) == "CN=first"
        shutil.copy(its_key, key)
        server.signal(signal.SIGHUP)
        until(lambda: shown(server) == "CN=second")
        assert client.get("/health").status_code == 200, "open connections go on"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ssl_keyfile": "server.key"}, "--ssl_keyfile needs --ssl_certfile"),
        ({"ssl_keyfile_password": "open"}, "--ssl_keyfile_password needs --ssl_certfile"),
        ({"ssl_certfile": "none.crt"}, "--ssl_certfile FOLDER/none.crt cannot be read: No such file or directory"),
        ({"ssl_certfile": "server.crt", "ssl_keyfile": "none.key"}, "--ssl_keyfile FOLDER/none.key cannot be read"),
        ({"ssl_certfile": "server.crt"}, "--ssl_certfile FOLDER/server.crt cannot be used"),
        ({"ssl_certfile": "server.crt", "ssl_keyfile": "locked.key"}, "the key needs --ssl_keyfile_password"),
        (
            {"ssl_certfile": "locked.crt", "ssl_keyfile": "locked.key", "ssl_keyfile_password": "wrong"},
            "--ssl_keyfile_password is not that of the key",
        ),
        ({"ssl_certfile": "server.crt", "ssl_keyfile": "other.key"}, "the key is not that of the certificate"),
        ({"ssl_certfile": "text.crt", "ssl_keyfile": "server.key"}, "cannot be used"),
    ],
)
def test_files_that_cannot_be_used_end_the_start_with_one_line(
    tmp_path: Path, given: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_certificate(tmp_path)
    write_certificate(tmp_path, "other")
    write_certificate(tmp_path, "locked", password="open")
    (tmp_path / "text.crt").write_text("no certificate")
    placed = {name: value if name.endswith("password") else str(tmp_path / value) for name, value in given.items()}
    assert deploy.run(DeployParams(model="tests/echo", host="127.0.0.1", port=0, **placed)) == 1
    assert message.replace("FOLDER", str(tmp_path)) in caplog.records[-1].message
    assert len(caplog.records) == 1


def test_a_key_may_be_encrypted_or_lie_beside_its_certificate(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, "locked", password="open")
    assert read_certificate(str(certificate), str(key), "open")
    certificate, key = write_certificate(tmp_path)
    certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    assert read_certificate(str(certificate), None, None)
    with pytest.raises(WrongCertificate):
        read_certificate(None, str(key), None)


def test_handshakes_that_are_never_done_keep_nobody_out(
    tmp_path: Path, start_echo: Callable[..., ServerProcess]
) -> None:
    certificate, key = write_certificate(tmp_path)
    server = start_echo(params={"ssl_certfile": str(certificate), "ssl_keyfile": str(key), "max_connections": 4})
    host, port = server.url.removeprefix("https://").split(":")
    silent = [socket.create_connection((host, int(port)), timeout=PATIENCE) for _ in range(MOST_HANDSHAKES + 20)]
    assert httpx.get(f"{server.url}/health", verify=trusting(certificate), timeout=PATIENCE).status_code == 200
    assert silent[0].recv(1) == b"", "the first was broken off for the last"
    server.signal()
    assert server.wait() == 0
    for each in silent:
        each.close()
    assert "Traceback" not in "".join(server.log)
