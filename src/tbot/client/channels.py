"""What a stream's channels know of themselves: numbers, resume places, gaps, and their takers.

A channel takes the server's messages in order and answers whether it can go on; when it cannot (a
number is missing, a checksum does not fit) the stream subscribes again, with the place that the
channel has reached.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal, Self
from uuid import UUID

import msgspec

from tbot.client.backoff import FullJitter
from tbot.client.book import Book
from tbot.client.models import (
    AccountSnapshot,
    BestPrices,
    Entry,
    Gap,
    MarketStatus,
    Ticker,
    Trade,
)

_POSTINGS: Final = list[tuple[str, str, Decimal]]
TRADES_MAX: Final = 10_000
ENTRIES_MAX: Final = 1_000

REPAIRS_MAX: Final = 4
"""Times in a row that a channel asks for what it lacks; then it asks for a fresh start."""

type Overflow = Literal["oldest", "latest", "wait"]
type BookListener = Callable[[Book], None]


def told[T](listener: Callable[[T], None], item: T) -> None:
    """Call a function of the program's; what it raises is the event loop's to tell, not ours."""
    try:
        listener(item)
    except Exception as error:  # noqa: BLE001 - a stream does not end by its listener's fault
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"{listener!r} of a stream raised", "exception": error}
        )


class Subscription[T]:
    """What one loop of the program takes: an async iterator over a bounded queue.

    It goes on over reconnections and ends when its stream is closed. Leave it with `close` (or use
    it as an async context manager) to unsubscribe while the stream goes on.

    What happens when the program is slower than the server depends on the channel:

    - trades: the oldest are dropped beyond 10,000, and the stream's `on_gap` is told;
    - book, best prices, ticker: only the newest is kept;
    - account: nothing is dropped. The stream stops reading, so that the server waits; if that
      lasts, it closes the connection, and the stream resumes where it was.
    """

    def __init__(
        self,
        bound: int,
        overflow: Overflow,
        on_close: Callable[[Subscription[T]], None],
    ) -> None:
        self._bound = bound
        self._overflow = overflow
        self._on_close = on_close
        self._items: deque[T] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None
        self.dropped = 0
        """Items that the program was too slow to take."""

    async def put(self, item: T) -> bool:
        """Queue an item; False when another one had to go for it."""
        whole = True
        if self._overflow == "latest":
            self._items.clear()
        elif self._overflow == "wait":
            while len(self._items) >= self._bound and not self._ended:
                self._room.clear()
                await self._room.wait()
        elif len(self._items) >= self._bound:
            self._items.popleft()
            self.dropped += 1
            whole = False
        if not self._ended:
            self._items.append(item)
            self._changed.set()
        return whole

    def begin(self, item: T) -> None:
        """Start with what is known already."""
        self._items.append(item)
        self._changed.set()

    def end(self, error: Exception | None = None) -> None:
        """No more items will come; what is queued is still delivered, then the error."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._changed.set()
            self._room.set()

    def close(self) -> None:
        """Unsubscribe; safe to call twice."""
        self.end()
        self._items.clear()
        self._on_close(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        self._room.set()
        return self._items.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class Channel:
    """One channel of one symbol or account, with everybody who takes from it.

    Attributes:
        number: The server's number for it in this connection; None until it is confirmed.
        seq: Number of the last message taken; None before the first.
        waiting: It cannot go on before it was subscribed again.
        repairs: How often in a row something was missing.
        fresh: It was just subscribed: the next snapshot is what it asked for, whatever its number.
    """

    bound: int = 1
    overflow: Overflow = "latest"

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        self.name = name
        self.parameters = parameters
        self.takers: set[Subscription[Any]] = set()
        self.number: int | None = None
        self.seq: int | None = None
        self.epoch = ""
        self.waiting = True
        self.fresh = True
        self.repairs = 0
        self.backoff = FullJitter(0.05, 5.0)
        self.on_gap: Callable[[Gap], None] = lambda gap: None
        self.latest: Any = None
        """What a taker that joins later begins with."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for subscriptions that can share this channel."""
        return (self.name, *sorted(self.parameters.items()))

    def wish(self) -> dict[str, Any]:
        """What to ask the server for."""
        return {"channel": self.name, **self.parameters}

    def confirmed(self, answer: dict[str, Any], epoch: str) -> None:
        """The server has subscribed us."""
        self.number = answer["ch"]
        self.epoch = epoch
        self.waiting = False
        self.fresh = True

    @property
    def tries_to_resume(self) -> bool:
        """Whether it still asks to go on where it was: not when that has failed again and again."""
        return self.seq is not None and self.repairs <= REPAIRS_MAX

    def progressed(self) -> None:
        """A message fitted."""
        self.repairs = 0
        self.backoff.reset()

    def begins(self, seq: int) -> bool:
        """Whether a snapshot with this number is a new one; an old one that comes again is not."""
        fresh, self.fresh = self.fresh, False
        return fresh or self.seq is None or seq > self.seq

    def lost(self) -> None:
        """The connection is gone."""
        self.waiting = True

    async def take(self, message: dict[str, Any]) -> bool:
        """Take a message; False when the channel has to be subscribed again."""
        raise NotImplementedError

    async def give(self, item: Any) -> None:
        """Hand an item to every taker."""
        for taker in list(self.takers):
            if not await taker.put(item):
                self.missed("queue_full", 1)

    def missed(self, why: str, count: int | None) -> None:
        """Tell the program about a gap."""
        self.on_gap(Gap(self.name, str(self.parameters.get("symbol", "")), why, count))


class LatestChannel(Channel):
    """Best prices, ticker or status: every message stands for itself."""

    _kinds: Final[dict[str, type[Any]]] = {
        "bbo": BestPrices,
        "ticker": Ticker,
        "status": MarketStatus,
    }

    async def take(self, message: dict[str, Any]) -> bool:
        """See `Channel.take`."""
        if message["op"] == "snap" and self.begins(message["seq"]):
            self.latest = msgspec.convert(message["data"], self._kinds[self.name])
            self.seq = message["seq"]
            await self.give(self.latest)
        return True


class TradesChannel(Channel):
    """Every trade once, in order."""

    bound = TRADES_MAX
    overflow = "oldest"

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        super().__init__(name, parameters)
        self._last: Trade | None = None

    def wish(self) -> dict[str, Any]:
        """With the place to go on from, when there is one."""
        wish = super().wish()
        if self.tries_to_resume:
            wish["resume"] = {"epoch": self.epoch, "ch": self.number, "seq": self.seq}
        return wish

    async def take(self, message: dict[str, Any]) -> bool:
        """See `Channel.take`."""
        op, seq = message["op"], message["seq"]
        if op == "snap":
            if self.begins(seq):
                recent = msgspec.convert(message["data"]["trades"], list[Trade])
                await self._begin(recent)
                self.seq = seq
            return True
        self.fresh = False
        first = message["from"] if op == "gap" else seq
        if self.seq is None or first > self.seq + 1:
            return False  # something is missing: the server may still have it
        if seq <= self.seq:
            return True  # a repetition
        trade = None if op == "gap" else msgspec.convert(message["data"], Trade)
        self.seq = seq  # only now: what is not understood has to be asked for again
        if trade is None:
            slow = message["why"] == "slow"
            self.missed(message["why"], seq - message["from"] + 1 if slow else None)
        else:
            await self._give(trade)
        self.progressed()
        return True

    async def _begin(self, trades: list[Trade]) -> None:
        """A fresh start: fill in from the newest trades what was missed, as far as they reach."""
        last = self._last
        if last is None:
            self._last = trades[-1] if trades else None
            return
        # Ids need not grow everywhere, so it is their place in the list that counts.
        known = [place for place, trade in enumerate(trades) if trade.trade_id == last.trade_id]
        newer = trades[known[-1] + 1 :] if known else [one for one in trades if one.at >= last.at]
        if not known and not (newer and newer[0].trade_id == last.trade_id + 1):
            self.missed("reconnected", None)
        for trade in newer:
            await self._give(trade)

    async def _give(self, trade: Trade) -> None:
        self._last = trade
        await self.give(trade)


class BookChannel(Channel):
    """A book that is kept current, checked, and built anew when something does not fit."""

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        super().__init__(name, parameters)
        self.book = Book(parameters["symbol"], parameters["depth"])
        self.listeners: set[BookListener] = set()
        self.resyncs = 0

    def lost(self) -> None:
        """The book is not current any more."""
        super().lost()
        self.book.synced = False

    async def take(self, message: dict[str, Any]) -> bool:
        """See `Channel.take`."""
        op, seq, book = message["op"], message["seq"], self.book
        if op == "gap":
            if seq <= book.seq:
                return True  # a repetition
            book.synced = False  # a snapshot follows by itself
            self.missed(message["why"], None)
            return True
        data = message["data"]
        if op == "snap":
            if not self.begins(seq) and book.synced:
                return True  # an old one, again
            book.replace(seq, data["update_id"], data["bids"], data["asks"])
        elif not book.synced:
            return True  # on its way before the snapshot that we wait for
        elif seq <= book.seq:
            return True  # a repetition
        elif message["prev"] != book.seq:
            return self._resync()
        else:
            book.apply(seq, data["update_id"], data["bids"], data["asks"])
        if book.checksum() != data["checksum"]:
            return self._resync()
        self.seq = seq
        self.latest = book
        self.progressed()
        for listener in list(self.listeners):
            told(listener, book)
        await self.give(book)
        return True

    def _resync(self) -> bool:
        self.book.synced = False
        self.resyncs += 1
        return False


class AccountChannel(Channel):
    """An account's journal: every entry once, in order, over every interruption."""

    bound = ENTRIES_MAX
    overflow = "wait"

    def __init__(
        self, name: str, parameters: dict[str, Any], resume: tuple[int, str] | None
    ) -> None:
        super().__init__(name, parameters)
        self._hash = ""
        if resume is not None:
            self.seq, self._hash = resume

    def wish(self) -> dict[str, Any]:
        """With the place to go on from, when there is one."""
        wish = super().wish()
        if self.tries_to_resume:
            wish["resume"] = {"seq": self.seq, "hash": self._hash}
        return wish

    async def take(self, message: dict[str, Any]) -> bool:
        """See `Channel.take`."""
        op, seq = message["op"], message["seq"]
        if op == "snap":
            if not self.begins(seq):
                return True  # an old one, again
            place = {"seq": seq, "hash": message["hash"]}
            snapshot = msgspec.convert({**message["data"], **place}, AccountSnapshot)
            self.seq, self._hash = seq, message["hash"]
            await self.give(snapshot)
            return True
        if op != "delta" or self.seq is None:
            return True
        self.fresh = False
        if seq <= self.seq:
            return True  # a repetition
        if message["prev"] != self.seq:
            return False
        body = message["data"]
        entry = Entry(
            seq=seq,
            hash=message["hash"],
            kind=body["kind"],
            at=msgspec.convert(body["at"], datetime),
            data=body["data"],
            postings=msgspec.convert(body["postings"], _POSTINGS),
        )
        self.seq, self._hash = seq, message["hash"]
        self.progressed()
        await self.give(entry)
        return True


def account_channel(account_id: UUID | str, resume: tuple[int, str] | None) -> AccountChannel:
    """The channel of an account, from a place (sequence, hash digits) on."""
    return AccountChannel("account", {"account_id": str(account_id)}, resume)
