"""A stream endpoint on a real uvicorn, with a real database and journal and a feed made by hand."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import uvicorn
from fastapi import FastAPI

from tbot.auth import flow
from tbot.auth.flow import Auth
from tbot.auth.scopes import Role
from tbot.auth.users import create_user
from tbot.core.ids import new_id
from tbot.core.settings import AuthSettings, StreamSettings
from tbot.journal.commands import SYSTEM
from tbot.journal.cursors import Journal
from tbot.ledger.entries import Limits, OpenAccount
from tbot.market.channels import Market
from tbot.market.feed import StaleChanged
from tbot.market.hub import Hub
from tbot.web.sockets import uvicorn_options
from tbot.web.stream import Streams, router

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from streamclient import Client, dial
from streamfakes import FakeFeed

PASSWORD = "correct horse battery staple"
LIMITS = Limits(
    max_order_notional=Decimal(1_000_000), max_open_orders=1000, price_collar=Decimal("0.05")
)


@dataclass
class Stack:
    """Everything behind the endpoint."""

    desk: Any
    pool: Any
    auth: Auth
    feed: FakeFeed
    streams: Streams
    server: uvicorn.Server
    app: FastAPI
    url: str
    task: asyncio.Task[None]
    exits: AsyncExitStack
    tokens: dict[str, str] = field(default_factory=dict)
    users: dict[str, UUID] = field(default_factory=dict)

    async def user(self, name: str = "alice") -> UUID:
        """Create a user and log in."""
        user = await create_user(self.pool, self.auth.passwords, name, PASSWORD, Role.TRADER)
        self.users[name] = user.id
        self.tokens[name] = await self.login(name)
        return user.id

    async def login(self, name: str = "alice", scope: str = "") -> str:
        """A fresh access token."""
        return (await flow.login(self.auth, name, PASSWORD, scope)).access_token

    async def account(self, name: str = "alice", **deposits: str) -> UUID:
        """Open an account of a user."""
        account_id = new_id()
        amounts = {asset: Decimal(text) for asset, text in deposits.items()}
        command = OpenAccount(
            new_id(), SYSTEM, account_id, self.users[name], "test", "paper", LIMITS, amounts
        )
        await self.desk.committer.commit(command)
        return account_id

    def dial(self, **options: Any) -> Any:
        """A WebSocket connection, before anything is said."""
        return dial(self.url, **options)

    async def client(self, name: str = "alice", **options: Any) -> Client:
        """A client that is logged in."""
        client = Client(await self.dial(**options))
        self.exits.push_async_callback(client.socket.close)
        assert (await client.hear())["op"] == "hello"
        await client.say(op="auth", token=self.tokens[name])
        assert (await client.hear())["op"] == "authed"
        return client

    async def stop(self) -> None:
        """As boot does it: drain, then end the server, then the rest."""
        await self.streams.drain()
        self.server.should_exit = True
        await asyncio.wait_for(self.task, 15)
        await self.streams.stop()


@pytest.fixture
async def new_stack(pool: Any, new_desk: Callable[..., Any]) -> AsyncIterator[Callable[..., Any]]:
    """Makes stacks on the test's database; each is a server of its own."""
    stacks: list[Stack] = []
    async with AsyncExitStack() as exits:

        async def make(
            plain: bool = False, port: int = 0, source: Any = None, **settings: Any
        ) -> Stack:
            desk = await new_desk()
            auth_settings = AuthSettings(access_ttl_s=settings.pop("access_ttl_s", 900))
            auth = await exits.enter_async_context(flow.opened(pool, auth_settings, desk.bus))
            settings = {"drain_s": 0.1, **settings}
            stream_settings = StreamSettings(**settings)
            hub = Hub(stream_settings)
            feed = FakeFeed("BTC-USDT", "ETH-USDT")
            market = feed.market = Market(hub, source or feed)
            if source is None:
                feed.tell("BTC-USDT", StaleChanged(False))
            else:
                source.listen(market.hear)
            journal = Journal(pool, desk.bus, stream_settings)
            desk.committer.listen(journal.remember)
            streams = Streams(stream_settings, hub, market, journal, auth, pool, desk.bus)
            streams.start()
            app = FastAPI()
            app.state.streams = streams
            app.include_router(router)
            options = uvicorn_options(stream_settings)
            if plain:
                del options["ws"]
            config = uvicorn.Config(
                app, port=port, log_level="warning", timeout_graceful_shutdown=3, **options
            )
            server = uvicorn.Server(config)
            task = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.005)
            bound = server.servers[0].sockets[0].getsockname()[1]
            url = f"http://127.0.0.1:{bound}"
            stack = Stack(desk, pool, auth, feed, streams, server, app, url, task, exits)
            stacks.append(stack)
            return stack

        yield make
        for stack in stacks:
            await stack.stop()


@pytest.fixture
async def stack(new_stack: Callable[..., Any]) -> Stack:
    """One server with the user alice."""
    made: Stack = await new_stack()
    await made.user()
    return made
