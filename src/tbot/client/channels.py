"""What a stream's channels know of themselves: numbers, resume places, gaps, and their takers.

A channel takes the server's messages in order and answers whether it can go on; when it cannot (a
number is missing, a checksum does not fit) the stream subscribes again, with the place that the
channel has reached.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
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
from tbot.client.subscription import Overflow, Subscription, told

_POSTINGS: Final = list[tuple[str, str, Decimal]]
TRADES_MAX: Final = 10_000
ENTRIES_MAX: Final = 1_000

REPAIRS_MAX: Final = 4
"""Times in a row that a channel asks for what it lacks; then it asks for a fresh start."""

type BookListener = Callable[[Book], None]


class Channel:
    """One channel of one symbol or account, with everybody who takes from it.

    Attributes:
        number: The server's number for it in this connection; None until it is confirmed.
        seq: Number of the last message taken; None before the first.
        waiting: It cannot go on before it was subscribed again.
        parked: Nor is it to be, before its program has taken more of what it has.
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
        self.parked = False
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

    @property
    def full(self) -> bool:
        """Whether some taker can be given no more: then it has to be parked."""
        return any(taker.full for taker in self.takers)

    def take(self, message: dict[str, Any]) -> bool:
        """Take a message; False when the channel has to be subscribed again."""
        raise NotImplementedError

    def give(self, item: Any) -> None:
        """Hand an item to every taker."""
        for taker in list(self.takers):
            if not taker.put(item):
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

    def take(self, message: dict[str, Any]) -> bool:
        """See `Channel.take`."""
        if message["op"] == "snap" and self.begins(message["seq"]):
            self.latest = msgspec.convert(message["data"], self._kinds[self.name])
            self.seq = message["seq"]
            self.give(self.latest)
        return True


class NumberedChannel(Channel):
    """Messages whose numbers have no gap: what is missing is asked for, nothing comes twice."""

    overflow = "oldest"
    kind: type[Any]
    """Of what a message holds."""

    def wish(self) -> dict[str, Any]:
        """With the place to go on from, when there is one."""
        wish = super().wish()
        if self.tries_to_resume:
            wish["resume"] = {"epoch": self.epoch, "ch": self.number, "seq": self.seq}
        return wish

    def take(self, message: dict[str, Any]) -> bool:
        """See `Channel.take`."""
        op, seq = message["op"], message["seq"]
        if op == "snap":
            if self.begins(seq):
                self.restart(message["data"])
                self.seq = seq
            return True
        self.fresh = False
        first = message["from"] if op == "gap" else seq
        if self.seq is None or first > self.seq + 1:
            return False  # something is missing: the server may still have it
        if seq <= self.seq:
            return True  # a repetition
        item = None if op == "gap" else msgspec.convert(message["data"], self.kind)
        self.seq = seq  # only now: what is not understood has to be asked for again
        if item is None:
            why = message["why"]
            # Of what the server skipped it is known how much; of what it lacks itself it is not.
            self.missed(why, self.count(seq - message["from"] + 1) if why == "slow" else None)
        else:
            self.tell(item)
        self.progressed()
        return True

    def restart(self, data: dict[str, Any]) -> None:
        """Begin with a snapshot: fill in from it what was missed, as far as it reaches."""
        raise NotImplementedError

    def tell(self, item: Any) -> None:
        """Hand on what is new."""
        raise NotImplementedError

    def count(self, messages: int) -> int | None:
        """How many items so many messages stand for; None where that cannot be said."""
        raise NotImplementedError


class TradesChannel(NumberedChannel):
    """Every trade once, in order."""

    bound = TRADES_MAX
    kind = Trade

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        super().__init__(name, parameters)
        self._last: Trade | None = None

    def restart(self, data: dict[str, Any]) -> None:
        """See `NumberedChannel.restart`."""
        trades = msgspec.convert(data["trades"], list[Trade])
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
            self.tell(trade)

    def tell(self, item: Trade) -> None:
        """See `NumberedChannel.tell`."""
        self._last = item
        self.give(item)

    def count(self, messages: int) -> int | None:
        """A message is a trade."""
        return messages


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

    def take(self, message: dict[str, Any]) -> bool:
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
        self.give(book)
        return True

    def _resync(self) -> bool:
        self.book.synced = False
        self.resyncs += 1
        return False


class AccountChannel(Channel):
    """An account's journal: every entry once, in order, over every interruption."""

    bound = ENTRIES_MAX
    overflow = "park"

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

    def take(self, message: dict[str, Any]) -> bool:
        """See `Channel.take`."""
        op, seq = message["op"], message["seq"]
        if op == "snap":
            if not self.begins(seq):
                return True  # an old one, again
            place = {"seq": seq, "hash": message["hash"]}
            snapshot = msgspec.convert({**message["data"], **place}, AccountSnapshot)
            self.seq, self._hash = seq, message["hash"]
            self.give(snapshot)
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
        self.give(entry)
        return True


def account_channel(account_id: UUID | str, resume: tuple[int, str] | None) -> AccountChannel:
    """The channel of an account, from a place (sequence, hash digits) on."""
    return AccountChannel("account", {"account_id": str(account_id)}, resume)
