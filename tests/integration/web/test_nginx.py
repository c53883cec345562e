"""`deploy/nginx.conf` in a real nginx: HTTP/2 over TLS, WebSockets, events as they come, limits.

Skipped where there is no nginx, or no curl that speaks HTTP/2.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import websockets
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
CURL = shutil.which("curl")
SHIPPED = Path(__file__).resolve().parents[3] / "deploy/nginx.conf"


def _speaks_http2() -> bool:
    if CURL is None:
        return False
    told = subprocess.run([CURL, "--version"], capture_output=True, text=True, check=False)
    return "HTTP2" in told.stdout


pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
    pytest.mark.skipif(not _speaks_http2(), reason="no curl with HTTP/2"),
]


def certificate(directory: Path) -> None:
    """A certificate for 127.0.0.1 that is good for an hour, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (directory / "privkey.pem").write_bytes(key.private_bytes(pem, form, plain))
    (directory / "fullchain.pem").write_bytes(made.public_bytes(pem))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def configured(text: str, directory: Path, upstream: str, port: int, plain_port: int) -> str:
    """The configuration as it is shipped, but for names, ports and files."""
    text = text.replace("server 127.0.0.1:8000;", f"server {upstream};")
    text = text.replace("/etc/ssl/tbot/", f"{directory}/")
    text = text.replace("api.example.com", f"127.0.0.1:{port}").replace(
        f"server_name 127.0.0.1:{port};", "server_name 127.0.0.1;"
    )
    text = re.sub(r"(?m)^\s*listen \[::\].*$", "", text)
    text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    text = text.replace("listen 80;", f"listen 127.0.0.1:{plain_port};")
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off;\nmaster_process off;\npid {directory}/pid;\nerror_log stderr warn;\n"
        f"events {{ worker_connections 256; }}\n"
        f"http {{\naccess_log off;\n{temporary}{text}\n}}\n"
    )


@pytest.fixture
async def nginx(site: Any, serve: Any, tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """nginx before a served site: its addresses with TLS and without."""
    assert NGINX is not None
    certificate(tmp_path)
    port, plain_port = free_port(), free_port()
    shipped = SHIPPED.read_text()
    upstream = urlsplit(await serve(site)).netloc
    file = tmp_path / "nginx.conf"
    file.write_text(configured(shipped, tmp_path, upstream, port, plain_port))
    process = await asyncio.create_subprocess_exec(
        NGINX, "-p", str(tmp_path), "-c", str(file), stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            while True:
                assert process.returncode is None, (await process.communicate())[1].decode()
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        yield f"https://127.0.0.1:{port}", f"http://127.0.0.1:{plain_port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


@pytest.fixture
def curl(tmp_path: Path) -> Any:
    """Asks curl; answers the HTTP version, the status, the headers and the body."""

    async def ask(url: str, *options: str) -> tuple[str, int, dict[str, str], bytes]:
        assert CURL is not None
        process = await asyncio.create_subprocess_exec(
            CURL, "-sS", "-i", "--max-time", "60", "--noproxy", "*",
            "--cacert", str(tmp_path / "fullchain.pem"), *options, url,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        told, _ = await process.communicate()
        assert process.returncode == 0
        head, _, body = told.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return first.split(" ")[0], int(first.split(" ")[1]), headers, body

    return ask


async def test_the_api_over_http2(
    site: Any, nginx: tuple[str, str], curl: Any, tmp_path: Path
) -> None:
    url, plain = nginx
    token = ("-H", f"Authorization: Bearer {await site.token('ann')}")
    version, status, headers, body = await curl(f"{url}/v1/me", "--http2", *token)
    assert (version, status, json.loads(body)["username"]) == ("HTTP/2", 200, "ann")
    assert headers["x-content-type-options"] == "nosniff"
    assert "nginx" not in headers.get("server", "nginx/")[5:], "no version"
    # Tags come through strong, and so do conditions.
    assert headers["etag"].startswith('"')
    condition = ("-H", f"If-None-Match: {headers['etag']}")
    assert (await curl(f"{url}/v1/me", "--http2", *token, *condition))[1] == 304
    # A body goes in, and what is too large for T-Bot does not get to it.
    account = json.dumps({"name": "a", "starting_balance": {"USDT": "100"}})
    new = ("-H", "Content-Type: application/json", "-d", account)
    version, status, headers, _ = await curl(f"{url}/v1/accounts", "--http2", *token, *new)
    assert (version, status) == ("HTTP/2", 201)
    assert headers["location"].startswith("/v1/accounts/")
    (tmp_path / "large").write_bytes(b" " * 262_145)
    large = ("-H", "Content-Type: application/json", "-d", f"@{tmp_path / 'large'}")
    assert (await curl(f"{url}/v1/accounts", "--http2", *token, *large))[1] == 413
    # What is for operators, and what came in the clear.
    assert (await curl(f"{url}/metrics", "--http2"))[1] == 404
    _, status, headers, _ = await curl(f"{plain}/v1/me")
    assert (status, headers["Location"]) == (308, f"{url}/v1/me")
    # HTTP/1.1 is served alike.
    version, status, _, _ = await curl(f"{url}/v1/me", "--http1.1", *token)
    assert (version, status) == ("HTTP/1.1", 200)


async def test_websockets_and_events_come_through(
    site: Any, nginx: tuple[str, str], tmp_path: Path
) -> None:
    url, _ = nginx
    token = await site.token("ann")
    trust = ssl.create_default_context(cafile=str(tmp_path / "fullchain.pem"))
    address = url.replace("https", "wss") + "/v1/stream"
    async with asyncio.timeout(60):
        async with websockets.connect(
            address, ssl=trust, proxy=None, subprotocols=[websockets.Subprotocol("tbot.v1.json")]
        ) as socket_:
            await socket_.send(json.dumps({"op": "auth", "token": token}))
            while "authed" not in (said := str(await socket_.recv())):
                assert "error" not in said
        # An event is there while the answer goes on: nothing on the way waits for more.
        target = urlsplit(url)
        reader, writer = await asyncio.open_connection(target.hostname, target.port, ssl=trust)
        writer.write(
            f"GET /v1/events?channels=ticker:BTC-USDT HTTP/1.1\r\nHost: {target.netloc}\r\n"
            f"Authorization: Bearer {token}\r\nAccept-Encoding: gzip\r\n\r\n".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        assert head.startswith("http/1.1 200")
        assert "text/event-stream" in head
        assert "content-encoding" not in head
        assert b'"op":"snap"' in await reader.readuntil(b'"op":"snap"')
        writer.transport.abort()
