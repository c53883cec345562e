"""A whole T-Bot as a person starts it: the command, its children, its data directory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tbot.client import TBotClient

SOURCE = Path(__file__).resolve().parents[2] / "src"


class Installation:
    """A data directory and what runs on it; every process is ended with the test."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / "data"
        self.process: subprocess.Popen[bytes] | None = None
        self.others: list[subprocess.Popen[bytes]] = []
        self._runs = 0
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TBOT_", "PYTHONDONTWRITE"))
        } | {
            "PYTHONPATH": str(SOURCE),
            "TBOT_HTTP__PORT": "0",
            "TBOT_EXCHANGE__PORT": "0",
            "TBOT_DATA_DIR": str(self.data),
        }

    def command(self, *arguments: str) -> list[str]:
        """A call of the command line."""
        return [sys.executable, "-m", "tbot", *arguments]

    def run(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, timeout_s: float = 90.0) -> str:
        """`tbot up` until its banner; answers everything it said."""
        self._runs += 1
        log = self.home / f"up-{self._runs}.log"
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                self.command("up"),
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            said = log.read_text()
            if "T-Bot is ready" in said and (
                "curl" in said.partition("ready")[2] or "Not ready" in said
            ):
                return said
            assert self.process.poll() is None, said
            time.sleep(0.02)
        raise AssertionError(f"not ready within {timeout_s} s: {log.read_text()}")

    def serve(self, timeout_s: float = 60.0) -> str:
        """`tbot serve`, one more API process; answers its URL."""
        log = self.home / "serve.log"
        with log.open("wb") as file:
            self.others.append(
                subprocess.Popen(
                    self.command("serve"),
                    env=self.environment,
                    cwd=self.home,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = re.search(r"T-Bot serves (\S+)", log.read_text())
            if found:
                return found[1]
            assert self.others[-1].poll() is None, log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"not ready within {timeout_s} s: {log.read_text()}")

    @property
    def url(self) -> str:
        """Where the API is."""
        return str(json.loads((self.data / "api.json").read_text())["url"])

    @property
    def admin(self) -> dict[str, str]:
        """The first login."""
        found: dict[str, str] = json.loads((self.data / "admin.json").read_text())
        return found

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[TBotClient]:
        """The SDK, logged in as the first administrator."""
        admin = self.admin
        async with TBotClient(
            self.url, username=admin["username"], password=admin["password"]
        ) as client:
            yield client

    def pids(self) -> dict[str, int]:
        """Process ids of the parts that run on this data directory."""
        found: dict[str, int] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state == "Z":
                    continue
                if any(word.endswith(b"/postgres") for word in words[:1]):
                    place = words[words.index(b"-D") + 1].decode() if b"-D" in words else ""
                    if place == str((self.data / "postgres").resolve()):
                        found["postgres"] = int(entry.name)
                elif f"--data-dir={self.data / 'exchange'}".encode() in words:
                    found["exchange"] = int(entry.name)
                elif self.process is not None and int(entry.name) == self.process.pid:
                    found["api"] = int(entry.name)
        return found

    def signal(self, number: signal.Signals) -> int:
        """Signal `tbot up` and wait for its end; answers its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def end(self) -> None:
        """Leave nothing running, whatever the test did."""
        for other in self.others:
            other.kill()
            other.wait(10)
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        for pid in self.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(10)


@pytest.fixture
def installation() -> Iterator[Installation]:
    """An empty place to start T-Bot in."""
    home = Path(tempfile.mkdtemp(prefix="tbot-tests-", dir="/tmp"))
    home.chmod(0o711)
    made = Installation(home)
    yield made
    made.end()
    shutil.rmtree(home, ignore_errors=True)
