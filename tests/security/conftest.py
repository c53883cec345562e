"""One running server for all attacks, on real sockets, and the people who use and attack it.

Everybody comes from a loopback address of their own, so what is counted by address is theirs alone.
Every attack is a test named after its number in docs/security.md, as `test_a07_…`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest
import pytest_asyncio
import uvicorn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from streamclient import Client, dial
from tbot.auth import flow, passwords, users
from tbot.auth.flow import Grant, Peer
from tbot.auth.scopes import Role
from tbot.auth.store import user_by_name
from tbot.core.settings import Settings
from tbot.db.pool import transaction
from tbot.web.server import server_options
from tests.integration.web.conftest import PASSWORD, Site, _site, problem

SETTINGS: dict[str, Any] = {
    "http": {"access_log": "all"},
    # A busy machine is no overload here, and the address of nobody is used up.
    "overload": {"lag_ms_max": 1e6},
    # The market says its prices once, and they have to do for all tests.
    "risk": {"price_age_s_max": 86_400},
    # Short, so that nobody waits for what takes seconds; the defaults are asserted where they count.
    "stream": {
        "stall_timeout_s": 0.5,
        "queue_bytes_max": 65_536,
        "admission_lag_ms_max": 1e6,
        "drain_s": 0.1,
    },
}
_addresses = itertools.count(int(ipaddress.IPv4Address("127.10.0.1")))
_names = itertools.count(1)
_TLS = ssl.create_default_context()  # not used, but each client would make one


class Hashed:
    """Everybody's password, hashed once."""

    def __init__(self) -> None:
        self._hash = passwords._ARGON2.hash(PASSWORD)

    def broken_rule(self, _name: str, _password: str) -> None:
        """None is broken."""

    async def hash(self, password: str) -> str:
        """The hash of the one password there is."""
        assert password == PASSWORD
        return self._hash


HASHED: Any = Hashed()


@dataclass
class Person:
    """A user with a session, and what they say over sockets from their own address."""

    name: str
    id: UUID
    address: str
    grant: Grant
    http: httpx.AsyncClient
    url: str

    @property
    def token(self) -> str:
        """Their access token."""
        return self.grant.access_token

    async def stream(self, **options: Any) -> Client:
        """Their stream, logged in."""
        client = Client(await dial(self.url, **options))
        assert (await client.hear())["op"] == "hello"
        await client.say(op="auth", token=self.token)
        assert (await client.hear())["op"] == "authed"
        return client


@dataclass
class Answer:
    """What came back for raw bytes: the first response, and whether the connection ended."""

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool

    @property
    def code(self) -> str:
        """The problem's code."""
        return str(json.loads(self.body)["code"])


@dataclass
class World:
    """A running server."""

    site: Site
    url: str
    exits: AsyncExitStack
    new_server: Callable[..., Awaitable[World]]
    database_url: str
    errors: list[str] = field(default_factory=list)

    def client(self, token: str | None = None, address: str | None = None) -> httpx.AsyncClient:
        """A client from an address of its own, over real sockets."""
        address = address or new_address()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        transport = httpx.AsyncHTTPTransport(local_address=address, verify=_TLS)
        client = httpx.AsyncClient(
            base_url=self.url, transport=transport, headers=headers, timeout=30
        )
        self.exits.push_async_callback(client.aclose)
        return client

    async def person(
        self, role: Role = Role.TRADER, scope: str = "", name: str | None = None
    ) -> Person:
        """A new user, logged in."""
        name = name or f"user{next(_names)}"
        await self.new_user(name, role)
        address = new_address()
        grant = await self.session(name, address, scope)
        client = self.client(grant.access_token, address)
        return Person(name, grant.user_id, address, grant, client, self.url)

    async def new_user(self, name: str, role: Role = Role.TRADER) -> None:
        """A user who is not logged in."""
        await users.create_user(self.site.pool, HASHED, name, PASSWORD, role)

    async def session(self, name: str, address: str, scope: str = "") -> Grant:
        """A session without the price of a password hash."""
        async with transaction(self.site.pool) as connection:
            found = await user_by_name(connection, name)
            assert found is not None
            peer = Peer(address)
            auth = self.site.auth
            return await flow.begin_session(auth, connection, found[0], scope, peer, "password")

    async def log_in(self, client: httpx.AsyncClient, name: str, **form: str) -> httpx.Response:
        """Log in as everybody does."""
        return await client.post("/v1/token", data={"username": name, "password": PASSWORD, **form})

    async def raw(self, request: bytes, *, read_all: bool = False, limit_s: float = 20) -> Answer:
        """Send bytes; the first response to them.

        Args:
            read_all: Also wait for the server to close the connection; fails if it does not.
            limit_s: Then the test fails.
        """
        target = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(target.hostname, target.port)
        try:
            async with asyncio.timeout(limit_s):
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines)
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                closed = read_all and await reader.read() == b""
        finally:
            writer.close()
        return Answer(int(first.split(" ")[1]), headers, body, closed)


def new_address() -> str:
    """A loopback address that nobody has used yet."""
    return str(ipaddress.IPv4Address(next(_addresses)))


async def _serve(stack: AsyncExitStack, site: Site) -> str:
    server = uvicorn.Server(
        uvicorn.Config(**{**server_options(site.app, site.settings), "port": 0})
    )
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done(), task.exception()
        await asyncio.sleep(0.005)

    async def stop() -> None:
        await site.streams.drain()
        server.should_exit = True
        await task

    stack.push_async_callback(stop)
    port = server.servers[0].sockets[0].getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(postgres: Any) -> AsyncIterator[World]:
    """The server that most attacks are made on."""
    name = postgres.new_database()
    url = postgres.url(name, "app")
    async with AsyncExitStack() as stack:

        async def make(**changes: Any) -> World:
            site = await _site(stack, url, Settings(**{**SETTINGS, **changes}))
            served = await _serve(stack, site)
            return World(site, served, stack, make, url)

        yield await make()
    postgres.drop(name)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def strict(world: World) -> World:
    """A second server on the same database, with little room for failures and hashes."""
    return await world.new_server(auth={"hash_queue_max": 2, "failures_free_account": 4})


@pytest.fixture(name="problem")
def _problem() -> Callable[..., dict[str, Any]]:
    return problem
