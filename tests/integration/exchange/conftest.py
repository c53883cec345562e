"""The paper exchange as a real process, and a small client that signs as Binance's clients do."""

from __future__ import annotations

import base64
import hmac
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.asyncio.client import ClientConnection, connect

REPOSITORY = Path(__file__).resolve().parents[3]
START_TIMEOUT_S = 30.0


class Socket:
    """A WebSocket API connection: numbered calls, events kept apart."""

    def __init__(self, client: Client, raw: ClientConnection) -> None:
        self._client = client
        self.raw = raw
        self.events: list[dict[str, Any]] = []
        self._next = 0

    async def call(self, method: str, _signed: bool = True, **params: Any) -> dict[str, Any]:
        """Send a request, signed by HMAC unless told otherwise, and wait for its answer."""
        self._next += 1
        if _signed:
            params = self._client.signed(params)
        await self.raw.send(json.dumps({"id": self._next, "method": method, "params": params}))
        while True:
            message: dict[str, Any] = json.loads(await self.raw.recv())
            if message.get("id") == self._next and "status" in message:
                return message
            self.events.append(message)

    async def event(self, kind: str) -> dict[str, Any]:
        """The next private event of a kind."""
        while True:
            for number, message in enumerate(self.events):
                if message.get("event", {}).get("e") == kind:
                    del self.events[number]
                    event: dict[str, Any] = message["event"]
                    return event
            self.events.append(json.loads(await self.raw.recv()))


class Client:
    """Signs and sends requests to one running exchange."""

    def __init__(self, data_dir: Path) -> None:
        kept = json.loads((data_dir / "exchange.json").read_bytes())
        self.url: str = kept["url"]
        self.key: str = kept["api_key"]
        self._secret: bytes = kept["api_secret"].encode()
        self.ed25519_key: str = kept["ed25519_api_key"]
        private = serialization.load_pem_private_key(kept["ed25519_private_key"].encode(), None)
        assert isinstance(private, Ed25519PrivateKey)
        self._private = private
        self._http = httpx.Client(base_url=self.url, timeout=10, trust_env=False)

    def sign(self, payload: str) -> str:
        """HMAC of a payload."""
        return hmac.digest(self._secret, payload.encode(), "sha256").hex()

    def signed(self, params: dict[str, Any]) -> dict[str, Any]:
        """WebSocket API parameters with key, time and signature."""
        params = {"apiKey": self.key, "timestamp": time.time_ns() // 1_000_000, **params}
        payload = "&".join(f"{name}={params[name]}" for name in sorted(params))
        return {**params, "signature": self.sign(payload)}

    def logon(self) -> dict[str, Any]:
        """Parameters of `session.logon`."""
        params = {"apiKey": self.ed25519_key, "timestamp": time.time_ns() // 1_000_000}
        payload = "&".join(f"{name}={params[name]}" for name in sorted(params))
        signature = base64.b64encode(self._private.sign(payload.encode())).decode()
        return {**params, "signature": signature}

    def get(self, path: str, **params: Any) -> httpx.Response:
        """A public request."""
        return self._http.get(path, params=params)

    def call(self, method: str, path: str, _in_body: bool = False, **params: Any) -> httpx.Response:
        """A signed request, with its parameters in the query or in a form body."""
        params = {"timestamp": time.time_ns() // 1_000_000, **params}
        payload = str(httpx.QueryParams(params))
        payload += f"&signature={self.sign(payload)}"
        headers = {"X-MBX-APIKEY": self.key}
        if _in_body:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            return self._http.request(method, path, content=payload, headers=headers)
        return self._http.request(method, f"{path}?{payload}", headers=headers)

    def deposit(self, asset: str, amount: str, id: str = "") -> None:
        """Add funds."""
        answer = self.call(
            "POST", "/paper/v1/deposits", id=id or f"{asset}-1", asset=asset, amount=amount
        )
        assert answer.status_code == 200, answer.text

    @asynccontextmanager
    async def socket(self) -> AsyncIterator[Socket]:
        """A WebSocket API connection."""
        url = self.url.replace("http", "ws") + "/ws-api/v3"
        async with connect(url, proxy=None, compression=None) as raw:
            yield Socket(self, raw)

    def streams(self, path: str, **options: Any) -> connect:
        """A market stream connection."""
        url = self.url.replace("http", "ws") + path
        return connect(url, proxy=None, compression=None, max_size=None, **options)

    def close(self) -> None:
        """Close pooled connections."""
        self._http.close()


class Exchange:
    """One exchange process on one data directory; it can be killed and started again."""

    def __init__(self, data_dir: Path, *options: str, **environment: str) -> None:
        self.data_dir = data_dir
        self._options = options
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None
        self.client: Client = None  # type: ignore[assignment]

    def start(self) -> Exchange:
        """Start and wait for READY."""
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tbot.exchange", "--port", "0", "--die-with-parent"),
                *("--data-dir", str(self.data_dir), *self._options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.data_dir.parent / "exchange.log").open("ab"),
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), **self._environment},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(b"READY http://"), self.log()
        self.client = Client(self.data_dir)
        return self

    def kill(self) -> None:
        """End it without a word."""
        assert self.process is not None
        self.client.close()
        self.process.send_signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        if self.process is None:
            return 0
        self.client.close()
        self.process.terminate()
        return self._reap()

    def _reap(self) -> int:
        assert self.process is not None
        code = self.process.wait(START_TIMEOUT_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process = None
        return code

    def log(self) -> str:
        """What it logged so far, over all its starts."""
        return (self.data_dir.parent / "exchange.log").read_text()


@pytest.fixture
def new_exchange(tmp_path: Path) -> Iterator[Callable[..., Exchange]]:
    """Makes exchanges (not started); they are stopped at the end of the test."""
    made: list[Exchange] = []

    def make(*options: str, **environment: str) -> Exchange:
        made.append(Exchange(tmp_path / f"exchange{len(made)}", *options, **environment))
        return made[-1]

    yield make
    for exchange in made:
        exchange.stop()


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    """A synthetic exchange shared by a module's tests, with 1,000,000 USDT and 100 BTC."""
    running = Exchange(tmp_path_factory.mktemp("exchange") / "data", "--faults").start()
    running.client.deposit("USDT", "1000000")
    running.client.deposit("BTC", "100")
    yield running
    running.stop()
