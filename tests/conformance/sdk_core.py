"""An honest server of the stream, and the places where a scenario's plan makes it misbehave.

A `Run` is one scenario under way: its truth, its tokens and orders, and what the client did. Each
connection is a `Session`; channels are published one message at a time and only while somebody is
subscribed, so that a run does not depend on how fast the client is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sdk_wire as wire
from sdk_truth import TRUTHS, Truth

type Message = dict[str, Any]
type Act = Callable[[Session, Message], Awaitable[bool]]
"""Deals with a message before the honest server would send it; True when that is not to be sent."""
type Meet = Callable[[Session], Awaitable[bool]]
"""Deals with a connection before the honest server would; True when that is over with it."""

PROTOCOLS: Final = ("tbot.v1.json",)
FIRST_NUMBER: Final = 7
CLOSE_WAIT_S: Final = 1.0
SEEN_AFTER: Final = 5
"""Messages after a snapshot that show that the client has got it, even where it was cut off."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes wrong in a scenario, and what a client has to make of it.

    Attributes:
        channels: To be subscribed to.
        count: Messages of each channel.
        meet: At the HTTP request, before anything was answered.
        greet: After the handshake, before `hello`.
        tell: Before each message of a channel.
        answer: Before each answer: `authed`, `subbed`, `placed` and so on.
        login: Before each answer to a request for tokens; it has the session of that request.
        resume: Whether a place is taken: `honest`, `refuse`, or `lie` (says so, and begins later).
        new_epoch: Every connection is to another run of the server.
        away: Messages that are published while the client is away.
        pace_s: Between two messages.
        token_s: How long tokens count.
        limits: What `hello` says, beside the usual.
        orders: How many orders the client is to place.
        ended: Codes that the client may end for good with; None when it has to stay.
        gaps: `none`, `some` or `any` may be told on public channels.
        connections: Fewest and most that a client may make.
        pause_s: Least time between the first connection's end and the next.
        tolerant: The client may not have got its first snapshot: it may begin later, and anew.
        fresh_token: The client has to show another token than its first.
    """

    channels: tuple[str, ...] = ("trades",)
    count: int = 40
    transport: str = "websocket"
    meet: Meet | None = None
    greet: Meet | None = None
    tell: Act | None = None
    answer: Act | None = None
    login: Meet | None = None
    resume: str = "honest"
    new_epoch: bool = False
    away: int = 0
    pace_s: float = 0.002
    token_s: float = 900.0
    limits: Mapping[str, Any] = field(default_factory=dict)
    orders: int = 0
    order_codes: tuple[str, ...] = ("placed",)
    ended: tuple[int, ...] | None = None
    gaps: str = "none"
    connections: tuple[int, int] = (1, 12)
    pause_s: float = 0.0
    tolerant: bool = False
    fresh_token: bool = False


class Run:
    """One scenario under way.

    Args:
        number, plan: The scenario.
        seed: Of everything that is drawn by lot.
    """

    def __init__(self, number: int, plan: Plan, seed: int) -> None:
        self.number = number
        self.plan = plan
        self.rng = random.Random(f"{number}:{seed}")
        self.truths: dict[str, Truth] = {
            name: TRUTHS[name](plan.count, seed) for name in plan.channels
        }
        self.published = dict.fromkeys(plan.channels, 0)
        for truth in self.truths.values():
            truth.late = plan.tolerant
        self.begins = dict.fromkeys(plan.channels, 0)
        self.since = dict.fromkeys(plan.channels, 0)
        """Messages that followed the newest snapshot."""
        self.tokens: dict[str, float] = {}
        self.orders: dict[str, str] = {}
        self.faults: list[str] = []
        self.connections = 0
        self.logins = 0
        self.shown: list[str] = []
        """Tokens that were shown on the stream."""
        self.beaten = 0
        """How often the plan did what it is there for."""
        self.ended_at_s: float | None = None
        """When the first connection did, or rather just before."""
        self.pause_s: float | None = None
        self.tasks: set[asyncio.Task[Any]] = set()

    def fault(self, what: str) -> None:
        """Something that the client should not have done."""
        if len(self.faults) < 20:
            self.faults.append(what)

    def ends(self) -> None:
        """A connection ends, or is about to: from the first one's end on the client stays away.

        Before the client can know it, for it counts from when it does, however slow we are.
        """
        if self.ended_at_s is None:
            self.ended_at_s = time.monotonic()

    def begins_anew(self) -> None:
        """There is a connection: how long was it after the first one's end?"""
        if self.ended_at_s is not None and self.pause_s is None:
            self.pause_s = time.monotonic() - self.ended_at_s

    def verdict(self, report: Mapping[str, Any]) -> list[str]:
        """What is wrong with what the client did and told; nothing when it passed."""
        plan, found = self.plan, list(self.faults)
        ended = report.get("ended")
        if plan.ended is None and ended is not None:
            found.append(f"it ended: {ended}")
        if plan.ended is not None:
            if ended is None:
                found.append("it did not end")
            elif plan.ended and ended.get("code") not in plan.ended:
                found.append(f"it ended with {ended}, not one of {plan.ended}")
        gaps = report.get("gaps", {})
        for name, truth in self.truths.items():
            items = report.get("items", {}).get(name, [])
            told = int(gaps.get(name, 0))
            if plan.ended is None:
                found += [f"{name}: {one}" for one in truth.faults(items, told, self.begins[name])]
            if plan.gaps != "any" and (told > 0) != (plan.gaps == "some") and name != "account":
                found.append(f"{name}: {told} gaps were told")
        for key, told in report.get("orders", {}).items():
            if told not in plan.order_codes:
                found.append(f"order {key}: {told}")
            if told == "placed" and key not in self.orders:
                found.append(f"order {key} was never placed")
        if len(report.get("orders", {})) != plan.orders:
            found.append(f"{len(report.get('orders', {}))} orders were told of {plan.orders}")
        if plan.fresh_token and len(set(self.shown)) < 2:
            found.append("no fresh token was shown")
        least, most = plan.connections
        if not least <= self.connections <= most:
            found.append(f"{self.connections} connections, not {least} to {most}")
        if self.pause_s is not None and self.pause_s < plan.pause_s - 0.05:
            found.append(f"it came back after {self.pause_s:.2f} s, not {plan.pause_s} s")
        return found


class Session:
    """One connection of a run.

    Args:
        run: Which.
        line: The connection.
        request: What it began with.
    """

    def __init__(self, run: Run, line: wire.Wire, request: wire.Request) -> None:
        self.run = run
        self.plan = run.plan
        self.line = line
        self.request = request
        self.nth = run.connections
        self.epoch = f"epoch{self.nth if run.plan.new_epoch else 1}"
        self.sent = 0
        """Messages of channels so far on this connection."""
        self.at: dict[str, int] = {}
        """Subscribed channels, and the last message that each was handed."""
        self.deaf = False
        self.events = False
        self._index: dict[str, int] = {}
        self._reader: asyncio.Task[Any] | None = None
        self._expires_at_s = float("inf")

    # Speaking

    async def say(self, message: Message) -> None:
        """Send a message, honestly."""
        if self.events:
            place = self._place() if message["op"] in ("snap", "delta", "gap") else ""
            head = f"id: {place}\n".encode() if place else b""
            await self.line.raw(head + b"data: " + wire.text(message) + b"\n\n")
        else:
            await self.line.raw(wire.frame(wire.TEXT, wire.text(message)))

    def _place(self) -> str:
        known = [name for name in self.at if name in ("trades", "account")]
        words = []
        for name in known:
            truth, seq = self.run.truths[name], self.at[name]
            word = truth.digits(seq) if hasattr(truth, "digits") else self.number(name)
            words.append(f"{self._index[name]}.{seq}.{word}")
        return "/".join([self.epoch, *words]) if words else ""

    async def cut(self) -> None:
        """End the connection without a close; what was sent arrives.

        Raises:
            Gone: Always.
        """
        self.run.ends()
        with contextlib.suppress(OSError):
            self.line.writer.write_eof()
        await self._let_go()

    async def reset(self) -> None:
        """Cut the connection, with what is on its way.

        Raises:
            Gone: Always.
        """
        self.run.ends()
        self.line.abort()
        raise wire.Gone

    async def _let_go(self) -> None:
        """Wait a moment for the client's own end of a connection.

        Raises:
            Gone: Always.
        """
        self.deaf = True
        if self._reader is not None and asyncio.current_task() is not self._reader:
            await asyncio.sleep(CLOSE_WAIT_S)  # who reads notices it
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_WAIT_S):
                    while await self.line.reader.read(4096):
                        pass
        raise wire.Gone

    async def close(self, code: int | None, reason: str = "") -> None:
        """Close the connection with a code, and wait a moment for the client's own close.

        Raises:
            Gone: Always.
        """
        self.run.ends()
        if self.events:
            last = wire.text({"op": "close", "code": code, "reason": reason})
            await self.line.raw(b"event: close\ndata: " + last + b"\n\n")
        else:
            await self.line.raw(wire.close_frame(code, reason))
        await self.cut()

    async def stall(self) -> None:
        """Neither read nor write any more, until the client gives the connection up.

        Raises:
            Gone: It did.
        """
        self.deaf = True
        if asyncio.current_task() is not self._reader and self._reader is not None:
            await asyncio.Event().wait()  # who reads will notice the end
        while True:
            await self.line.hear()

    def number(self, name: str) -> int:
        """The channel's number."""
        return FIRST_NUMBER + list(self.run.truths).index(name)

    def name_of(self, message: Message) -> str:
        """The channel that a message is of."""
        return list(self.run.truths)[message["ch"] - FIRST_NUMBER]

    # The conversation

    async def enter(self) -> None:
        """Hello, and the login."""
        if self.plan.greet is not None and await self.plan.greet(self):
            raise wire.Gone
        await self.say(self.hello())
        while True:
            message = await self._hear()
            if message["op"] == "auth":
                await self._auth(message)
                return
            self.run.fault(f"{message['op']} came before auth")

    def hello(self) -> Message:
        """The first message."""
        limits = {"subscriptions": 256, "heartbeat_s": 15.0, "orders_per_message": 50}
        return {
            "op": "hello",
            "protocol": PROTOCOLS[0],
            "epoch": self.epoch,
            "at": _stamp(0),
            "limits": {**limits, "orders_in_flight": 256, **self.plan.limits},
        }

    async def _auth(self, message: Message) -> None:
        token = message.get("token", "")
        self.run.shown.append(token)
        expires_at_s = self.run.tokens.get(token, 0.0)
        left_s = expires_at_s - time.monotonic()
        if left_s <= 0:
            self.run.fault("a token was shown that had ended, or that never was")
            await self.close(4001, "the token is not good")
        self._expires_at_s = expires_at_s
        expires = {"expires_at": _stamp(left_s)}
        await self.reply({"op": "authed", "id": message.get("id"), **expires})

    async def reply(self, message: Message) -> bool:
        """Send an answer, unless the plan has it otherwise; whether it was sent."""
        if self.plan.answer is not None and await self.plan.answer(self, message):
            return False
        await self.say(message)
        return True

    async def _hear(self) -> Message:
        while True:
            kind, data = await self.line.hear()
            if kind == wire.CLOSE:
                with contextlib.suppress(wire.Gone):
                    await self.line.raw(wire.frame(wire.CLOSE, data[:2]))
                raise wire.Gone
            if kind == wire.PING and not self.deaf:
                await self.line.raw(wire.frame(wire.PONG, data))
            if kind == wire.TEXT:
                message = json.loads(data)
                if isinstance(message, dict):
                    return message
            elif kind == wire.BINARY:
                self.run.fault("a binary frame in a text protocol")

    async def listen(self) -> None:
        """Answer what the client says, until it goes."""
        self._reader = asyncio.current_task()
        while True:
            left_s = self._expires_at_s - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, left_s) if left_s < 1e6 else None):
                    message = await self._hear()
            except TimeoutError:
                self.run.fault("the token ended, and no fresh one was shown before")
                await self.close(4103, "the access token has expired")
                return
            if self.deaf:
                continue
            match message["op"]:
                case "auth":
                    await self._auth(message)
                case "sub":
                    await self.sub(message)
                case "unsub":
                    for name in [n for n in self.at if self.number(n) in message["chs"]]:
                        del self.at[name]
                case "ping":
                    await self.reply({"op": "pong", "id": message.get("id")})
                case "place":
                    await self._place_order(message)

    async def _place_order(self, message: Message) -> None:
        order = message["order"]
        key = order["client_order_id"]
        replayed = key in self.run.orders
        self.run.orders.setdefault(key, f"00000000-0000-7000-8000-{len(self.run.orders):012d}")
        told = order_json(order, self.run.orders[key])
        answer = {"op": "placed", "id": message["id"], "status": 201, "order": told}
        await self.reply({**answer, "replayed": True} if replayed else answer)

    async def sub(self, message: Message) -> None:
        """Subscribe: an answer for each wish, then what it begins with."""
        subs: list[Message] = []
        starts: list[tuple[str, bool]] = []
        for index, wish in enumerate(message["channels"]):
            name = wish.get("channel")
            if name not in self.run.truths:
                error = {"code": "unknown_channel", "msg": "no such channel", "temporary": False}
                subs.append({"error": error})
                continue
            self._index[name] = index
            answer: Message = {"ch": self.number(name), "channel": name}
            recovered = None
            if "resume" in wish:
                recovered = answer["recovered"] = self._resumes(name, wish["resume"])
            elif (
                self.run.since[name] >= SEEN_AFTER and name == "account" and not self.plan.tolerant
            ):
                self.run.fault("an account was begun anew instead of resumed")
            subs.append(answer)
            starts.append((name, bool(recovered)))
        if not await self.reply({"op": "subbed", "id": message.get("id"), "subs": subs}):
            for name, _ in starts:
                self.at.pop(name, None)
            return
        for name, recovered in starts:
            if not recovered:
                await self.begin(name)

    def _resumes(self, name: str, resume: Message) -> bool:
        """Whether a channel goes on at a place; then it does."""
        truth, seq = self.run.truths[name], int(resume.get("seq", -1))
        if name == "account":
            known = resume.get("hash") == truth.digits(seq)  # type: ignore[attr-defined]
            if not known:
                self.run.fault(f"the place {resume} was never told")
        else:
            known = resume.get("epoch") == self.epoch and resume.get("ch") == self.number(name)
        if not known or self.plan.resume == "refuse" or seq > self.run.published[name]:
            return False
        self.at[name] = seq + 3 if self.plan.resume == "lie" else seq
        return True

    async def begin(self, name: str) -> None:
        """A snapshot of where a channel is."""
        seq = self.run.published[name]
        self.run.begins[name] += 1
        self.run.since[name] = 0
        message = {"op": "snap", "ch": self.number(name), "seq": seq}
        self.at.pop(name, None)
        await self.tell(message | self.run.truths[name].snapshot(seq))
        self.at[name] = seq

    async def tell(self, message: Message) -> None:
        """Send a channel's message, unless the plan has it otherwise."""
        if self.plan.tell is None or not await self.plan.tell(self, message):
            await self.say(message)
        self.sent += 1
        self.run.since[self.name_of(message)] += 1

    def message(self, name: str, seq: int) -> Message:
        """Message `seq` of a channel."""
        truth = self.run.truths[name]
        head: Message = {"op": "delta", "ch": self.number(name), "seq": seq, "prev": seq - 1}
        if not truth.chained:
            head = {"op": "snap", "ch": self.number(name), "seq": seq}
        return head | truth.delta(seq)

    async def publish(self) -> None:
        """Hand the subscribed channels what is published; then publish more."""
        published = self.run.published
        while True:
            behind = [name for name, at in self.at.items() if at < published[name]]
            for name in behind:
                at = self.at.get(name)
                if at is not None and at < published[name]:
                    self.at[name] = at + 1
                    await self.tell(self.message(name, at + 1))
            if not behind:
                for name in self.at:
                    published[name] = min(self.plan.count, published[name] + 1)
            await asyncio.sleep(0 if behind else self.plan.pace_s)

    async def _follow(self) -> None:
        if self.plan.greet is not None and await self.plan.greet(self):
            return
        await self.say(self.hello())
        await self.sub({"channels": wishes_of(self.request)})
        await self.publish()

    async def _leaves(self) -> None:
        """Until a client of events goes; it has nothing to say."""
        self._reader = asyncio.current_task()
        while await self.line.reader.read(4096):
            pass

    async def serve(self) -> None:
        """The whole connection, from its greeting to its end."""
        try:
            if self.events:
                await _first(self._follow(), self._leaves())
            else:
                await self.enter()
                await _first(self.listen(), self.publish())
        finally:
            self.run.ended_at_s = time.monotonic()
            for name in self.at:
                more = self.run.published[name] + self.plan.away
                self.run.published[name] = min(self.plan.count, more)


async def _first(*works: Awaitable[None]) -> None:
    """Run works until the first one ends; its exception is the answer."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def wishes_of(request: wire.Request) -> list[Message]:
    """What a request for events wants, with the places in its `Last-Event-ID`."""
    parts = request.query.get("channels", "").split(",")
    wishes: list[Message] = [{"channel": part.partition(":")[0]} for part in parts]
    epoch, *places = request.headers.get("last-event-id", "").split("/")
    for place in places:
        index, seq, word = place.split(".")
        wish = wishes[int(index)]
        if wish["channel"] == "account":
            wish["resume"] = {"seq": int(seq), "hash": word}
        else:
            wish["resume"] = {"epoch": epoch, "ch": int(word), "seq": int(seq)}
    return wishes


def _stamp(in_s: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=in_s)).isoformat().replace("+00:00", "Z")


def order_json(order: Message, order_id: str) -> Message:
    """An order as the server tells it."""
    nothing = {"filled_quantity": "0", "filled_quote": "0", "average_price": None}
    return {
        "id": order_id,
        **{name: order.get(name) for name in ("account_id", "symbol", "side", "type", "quantity")},
        "client_order_id": order["client_order_id"],
        "venue": "paper",
        "quote_amount": None,
        "limit_price": order.get("limit_price"),
        "time_in_force": "gtc",
        "post_only": False,
        "state": "pending_new",
        "reason": None,
        "cancel_requested": False,
        **nothing,
        "fees": [],
        "held": None,
        "created_at": _stamp(0),
        "updated_at": _stamp(0),
        "sequence": 1,
    }
