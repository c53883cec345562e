"""The servers that are compared, each a process of its own: `python -m fanout.servers KIND`.

They say one line of JSON when they are ready, take orders as lines of JSON on standard input
(`publish`, `facts`), and end when it does. All publish the same messages: trades, 190 bytes as
JSON, their `at` the moment at which they were due, so that a server that falls behind its rate
does not look quicker for it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import uvicorn
import uvloop
from fanout.trades import FIRST, Trades, paced, symbol_of
from fanout.world import USERS
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from writepath.place import SERVER_CORE, pin

from tbot.auth import flow as auth_flow
from tbot.auth import store as auth_store
from tbot.auth.scopes import Role, granted
from tbot.auth.users import create_user
from tbot.boot import PaperAccess, running
from tbot.core import log
from tbot.core.errors import TBotError, Unavailable
from tbot.core.ids import new_id
from tbot.core.limit_settings import LimitSettings, OverloadSettings
from tbot.core.settings import Settings, StreamSettings
from tbot.db.pool import transaction
from tbot.journal.commands import SYSTEM
from tbot.ledger.entries import ChangeAccount, Limits, OpenAccount
from tbot.market.channels import CHANNELS, Market, Wanted, wanted
from tbot.market.feed import FeedEvent, StaleChanged, Traded
from tbot.market.hub import Hub
from tbot.market.topics import Topic
from tbot.serving import settle_collector
from tbot.web.server import server_options
from tbot.web.stream import Streams

WIDE: Final = dict.fromkeys(
    ("clients_max", "clients_per_user_max", "clients_per_address_max"), 20_000
)
"""Everybody comes from one machine, and from few users."""
OFTEN: Final = "100000000/1s"
LIMITS: Final = Limits(
    max_order_notional=Decimal(1), max_open_orders=1, price_collar=Decimal("0.05")
)


class Bench:
    """A market source without a venue: the benchmark tells the market what happens."""

    def __init__(self, symbols: int) -> None:
        self.trades_of = {name: Trades(name, FIRST) for name in map(symbol_of, range(symbols))}

    def knows(self, symbol: str) -> bool:
        return symbol in self.trades_of

    def symbols(self) -> Sequence[str]:
        return list(self.trades_of)

    def trades(self, _symbol: str, _limit: int) -> Sequence[Any]:
        return ()

    def stale(self, _symbol: str) -> bool:
        return False

    def book(self, _symbol: str) -> None:
        return None

    best = ticker = book


class Ours:
    """T-Bot's stream: its hub, sessions, authentication, journal and WebSocket class."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.source = Bench(options.get("symbols", 1))
        self.facts: dict[str, Any] = {}
        self.refused = 0
        self.heard: list[tuple[int, float]] = []
        self._accounts: list[UUID] = []

    async def open(self, stack: AsyncExitStack, dsn: str) -> dict[str, Any]:
        """Start everything; returns what uvicorn needs."""
        os.environ["TBOT_AUTH__ACCESS_TTL_S"] = "86400"
        settings = Settings(data_dir=Path("/nonexistent"))
        settings.stream = StreamSettings(**{**WIDE, **self.options.get("stream", {})})
        settings.limits = LimitSettings(address=OFTEN, streams=OFTEN, user=OFTEN)
        settings.overload = OverloadSettings(connections_per_address_max=WIDE["clients_max"])
        self.parts = parts = await stack.enter_async_context(running(settings, dsn, None))
        hub = Hub(settings.stream)
        self.market = Market(hub, self.source)
        old = parts.streams
        streams = Streams(
            settings.stream, hub, self.market, old.journal, parts.auth, parts.pool, parts.bus
        )
        streams.start()
        stack.push_async_callback(streams.stop)
        parts.app.state.streams = streams
        self.hub = hub
        for symbol in self.source.trades_of:
            self.market.hear(symbol, StaleChanged(False))
            wish = wanted(CHANNELS["trades"], {"channel": "trades", "symbol": symbol})
            assert isinstance(wish, Wanted)
            topic = self.market.topic(wish)
            assert isinstance(topic, Topic)
            topic.seq = topic.lost_through = FIRST
        await self._populate()
        settle_collector()  # as `tbot up` does before it serves
        return server_options(parts.app, settings)

    async def _populate(self) -> None:
        """Users, a session and a token for each client, and accounts for private streams."""
        auth, clients = self.parts.auth, self.options.get("clients", 1000)
        users = []
        for number in range(min(USERS, clients)):
            name = f"bench{new_id().hex[-12:]}.{number}"
            user = await create_user(
                self.parts.pool, auth.passwords, name, "a password for benchmarks", Role.TRADER
            )
            users.append(user.id)
        scopes = granted(Role.TRADER, "")
        tokens = []
        async with transaction(auth.pool) as connection:
            for number in range(clients):
                session_id, user_id = new_id(), users[number % len(users)]
                expires_at = await auth_store.insert_session(
                    connection, session_id, user_id, "", 86_400
                )
                grant = auth_flow._grant(
                    auth, user_id, session_id, scopes, "", expires_at.timestamp()
                )
                tokens.append(grant.access_token)
        accounts = []
        for number in range(self.options.get("accounts", 0)):
            account_id = new_id()
            owner_id = users[number % len(users)]
            account = OpenAccount(new_id(), SYSTEM, account_id, owner_id, "bench", "paper", LIMITS)
            for patience in range(9, -1, -1):  # a machine that is busy elsewhere may stall us
                try:
                    await self.parts.committer.commit(account)
                    break
                except Unavailable:
                    if not patience:
                        raise
            accounts.append(account_id)
        self._accounts = accounts
        self.facts = {"tokens": tokens, "accounts": [str(each) for each in accounts]}

    async def publish(self, rate: float, seconds: float) -> int:
        """Publish `rate` messages a second over all markets, in turn."""
        trades = list(self.source.trades_of.values())
        turn = 0

        def one(at: datetime) -> None:
            nonlocal turn
            each = trades[turn % len(trades)]
            turn += 1
            self.market.hear(each.symbol, Traded(each.next(at)))

        return await paced(rate, seconds, one)

    async def private(self, rate: float, seconds: float) -> int:
        """Change accounts: each change is an entry of a journal, and a private event."""
        pending: set[asyncio.Task[Any]] = set()
        count = 0

        def one(_at: datetime) -> None:
            nonlocal count
            count += 1
            account_id = random.choice(self._accounts)
            command = ChangeAccount(new_id(), SYSTEM, account_id, name=f"bench {count}")
            task = asyncio.ensure_future(self._commit(command))
            pending.add(task)
            task.add_done_callback(pending.discard)

        done = await paced(rate, seconds, one)
        if pending:
            await asyncio.wait(pending)
        return done

    async def _commit(self, command: ChangeAccount) -> None:
        try:
            await self.parts.committer.commit(command)
        except TBotError:
            self.refused += 1  # the database is too busy: less private events, none of them lost


class Played(Ours):
    """The whole of T-Bot on a paper exchange that plays a recording, up to its candles."""

    async def open(self, stack: AsyncExitStack, dsn: str) -> dict[str, Any]:
        os.environ["TBOT_AUTH__ACCESS_TTL_S"] = "86400"
        settings = Settings(data_dir=Path("/nonexistent"))
        settings.stream = StreamSettings(**{**WIDE, **self.options.get("stream", {})})
        settings.limits = LimitSettings(address=OFTEN, streams=OFTEN, user=OFTEN)
        settings.overload = OverloadSettings(connections_per_address_max=WIDE["clients_max"])
        access = PaperAccess(**self.options["exchange"])
        self.parts = await stack.enter_async_context(running(settings, dsn, access))
        self.hub = self.parts.streams.hub
        if self.parts.feed is not None:
            self.parts.feed.listen(self._hear)
        while await self.parts.unready():
            await asyncio.sleep(0.05)
        await self._populate()
        settle_collector()
        return server_options(self.parts.app, settings)

    def _hear(self, symbol: str, event: FeedEvent) -> None:
        """Note when each trade was heard: what came before is not the server's doing."""
        if isinstance(event, Traded):
            self.heard.append((event.trade.trade_id, time.time()))


class Naive:
    """What one writes first: FastAPI, and an await for each client and message."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.facts: dict[str, Any] = {}
        self._clients: set[WebSocket] = set()
        self._trades = Trades(symbol_of(0), FIRST)

    async def open(self, _stack: AsyncExitStack, _dsn: str) -> dict[str, Any]:
        app = FastAPI()

        @app.websocket("/v1/stream")
        async def stream(websocket: WebSocket) -> None:
            await websocket.accept()
            self._clients.add(websocket)
            await websocket.send_text('{"op":"subbed"}')
            try:
                while True:
                    await websocket.receive_text()
            except WebSocketDisconnect:
                self._clients.discard(websocket)

        return {
            "app": app,
            "http": "httptools",
            "ws_per_message_deflate": False,
            "access_log": False,
            "log_config": None,
            "lifespan": "off",
        }

    async def publish(self, rate: float, seconds: float) -> int:
        async def one(at: datetime) -> None:
            text = self._trades.message(1, self._trades.next(at)).decode()
            for client in list(self._clients):
                await client.send_text(text)

        return await paced(rate, seconds, one)


KINDS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "ours": Ours,
    "played": Played,
    "naive": Naive,
}


async def orders(server: Any, running: dict[str, asyncio.Task[int]]) -> None:
    """Take orders until standard input ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        match order.pop("do"):
            case "facts":
                if order["collect"]:
                    gc.collect()
                say(
                    published={
                        name: task.result() for name, task in running.items() if task.done()
                    },
                    publishing=sum(not task.done() for task in running.values()),
                    tasks=len(asyncio.all_tasks()),
                    files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
                    hub=hub_facts(getattr(server, "hub", None)),
                )
            case "heard":
                say(heard=server.heard)
            case name:
                running[name] = asyncio.ensure_future(getattr(server, name)(**order))


def hub_facts(hub: Hub | None) -> dict[str, int]:
    """What the hub holds for its clients."""
    if hub is None:
        return {}
    buffered = [
        each.waiting_bytes + each.output.transport.get_write_buffer_size()  # type: ignore[attr-defined]
        for each in hub.subscribers
    ]
    return {
        "clients": len(buffered),
        "buffered_bytes_max": max(buffered, default=0),
        "astray": sum(each.cursors is not None for each in hub.subscribers),
    }


def say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def main(kind: str, dsn: str, options: dict[str, Any]) -> None:
    server = KINDS[kind](options)
    async with AsyncExitStack() as stack:
        config = await server.open(stack, dsn)
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        running = uvicorn.Server(uvicorn.Config(**config))
        serving = asyncio.create_task(running.serve(sockets=[listener]))
        publishing: dict[str, asyncio.Task[int]] = {}
        say(port=listener.getsockname()[1], **server.facts)
        taking = asyncio.create_task(orders(server, publishing))
        await asyncio.wait({taking, serving}, return_when=asyncio.FIRST_COMPLETED)
        for task in publishing.values():
            task.cancel()
        running.force_exit = running.should_exit = True
        await serving


if __name__ == "__main__":
    pin(SERVER_CORE)
    log.configure("warning", "json")  # as `tbot up` runs it
    uvloop.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
