"""What really happened, in a scenario: trades, a book, an account's journal, best prices.

Everything follows from a seed, and is numbered from 1; a client's report is held against it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

AT: Final = "2026-01-01T00:00:00.000000Z"
SYMBOL: Final = "BTC-USDT"
ACCOUNT_ID: Final = "00000000-0000-7000-8000-000000000005"
FIRST_TRADE_ID: Final = 1000
SNAPSHOT_TRADES: Final = 20

type Levels = list[tuple[str, str]]


class Truth:
    """One channel's history.

    Args:
        count: How many messages there are after the first snapshot.
    """

    private = False
    chained = True
    """Whether each message continues the one before."""
    late = False
    """Whether a client may begin later than with the first message."""

    def __init__(self, count: int) -> None:
        self.count = count

    def snapshot(self, seq: int) -> dict[str, Any]:
        """Members of the snapshot after `seq`."""
        raise NotImplementedError

    def delta(self, seq: int) -> dict[str, Any]:
        """Members of message `seq`."""
        raise NotImplementedError

    def last(self) -> Any:
        """What a client's report of this channel ends with."""
        raise NotImplementedError

    def faults(self, items: Sequence[Any], gaps: int, begins: int) -> list[str]:
        """What is wrong with a report.

        Args:
            items: As the client tells them (docs/sdk-conformance.md).
            gaps: How many it was told of.
            begins: How often the server had to begin anew with a snapshot.
        """
        raise NotImplementedError


class Trades(Truth):
    """A contiguous channel: items are trade ids."""

    def trade(self, seq: int) -> dict[str, Any]:
        """One trade."""
        side = "buy" if seq % 2 else "sell"
        number = FIRST_TRADE_ID + seq
        return {
            "trade_id": number,
            "price": f"{100 + seq}",
            "quantity": "1",
            "side": side,
            "at": AT,
        }

    def snapshot(self, seq: int) -> dict[str, Any]:
        first = max(1, seq - SNAPSHOT_TRADES + 1)
        return {"data": {"trades": [self.trade(number) for number in range(first, seq + 1)]}}

    def delta(self, seq: int) -> dict[str, Any]:
        return {"data": self.trade(seq)}

    def last(self) -> Any:
        return FIRST_TRADE_ID + self.count

    def faults(self, items: Sequence[Any], gaps: int, begins: int) -> list[str]:
        found = [
            f"trade {after} came after {before}"
            for before, after in pairwise(items)
            if after <= before
        ]
        first = items[0] if self.late and items else FIRST_TRADE_ID + 1
        wanted = range(first, FIRST_TRADE_ID + self.count + 1)
        missing = [number for number in wanted if number not in set(items)]
        if missing and not gaps:
            found.append(f"{len(missing)} trades from {missing[0]} on are missing, and no gap told")
        if gaps and not missing:
            found.append(f"{gaps} gaps were told, and nothing is missing")
        return found


class Account(Truth):
    """A private channel: items are `["snap", seq]` and `["entry", seq]`; the last is a `seq`."""

    private = True

    def digits(self, seq: int) -> str:
        """The hash prefix of an entry."""
        return f"{seq:016x}"

    def snapshot(self, seq: int) -> dict[str, Any]:
        data: dict[str, Any] = {"account_id": ACCOUNT_ID, "balances": [], "positions": []}
        return {"hash": self.digits(seq), "data": {**data, "orders": []}}

    def delta(self, seq: int) -> dict[str, Any]:
        body = {"seq": seq, "at": AT, "kind": "order.accepted", "data": {}, "postings": []}
        return {"hash": self.digits(seq), "data": body}

    def last(self) -> Any:
        return self.count

    def faults(self, items: Sequence[Any], gaps: int, begins: int) -> list[str]:
        found, at, snapshots = [], None, 0
        for kind, seq in items:
            if kind == "snap":
                snapshots += 1
            elif at is None or seq != at + 1:
                found.append(f"entry {seq} came after {at}")
            at = seq
        if not items or items[0][0] != "snap":
            found.append("the first item is no snapshot")
        if snapshots > max(1, begins):
            found.append(f"{snapshots} snapshots were delivered, {begins} sent")
        return found


class Book(Truth):
    """A book of all levels: items are `[update_id, checksum, bids, asks]` of valid states."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count)
        rng = random.Random(seed)
        self._changes: list[tuple[Levels, Levels]] = [([], [])]
        self._states: list[tuple[Levels, Levels]] = []
        bids: dict[str, str] = {}
        asks: dict[str, str] = {}
        for number in range(count + 1):
            changed: tuple[Levels, Levels] = ([], [])
            for _ in range(12 if not number else rng.randint(1, 3)):
                side = rng.randrange(2)
                price = str(rng.randint(80, 99) if side == 0 else rng.randint(101, 120))
                levels = (bids, asks)[side]
                quantity = (
                    "0" if price in levels and rng.random() < 0.4 else f"{rng.randint(1, 99)}"
                )
                levels[price] = quantity
                if quantity == "0":
                    del levels[price]
                changed[side].append((price, quantity))
            if number:
                self._changes.append(changed)
            self._states.append((_sorted(bids, True), _sorted(asks, False)))

    def state(self, seq: int) -> tuple[Levels, Levels]:
        """Both sides after `seq`, best first."""
        return self._states[seq]

    def snapshot(self, seq: int) -> dict[str, Any]:
        return {"data": self._data(seq, *self.state(seq))}

    def delta(self, seq: int) -> dict[str, Any]:
        return {"data": self._data(seq, *self._changes[seq])}

    def _data(self, seq: int, bids: Levels, asks: Levels) -> dict[str, Any]:
        check = checksum(*self.state(seq))
        return {"bids": bids, "asks": asks, "checksum": check, "update_id": seq, "at": AT}

    def last(self) -> Any:
        return [self.count, checksum(*self.state(self.count))]

    def faults(self, items: Sequence[Any], gaps: int, begins: int) -> list[str]:
        found, at = [], -1
        for update_id, check, bids, asks in items:
            if update_id <= at:
                found.append(f"book {update_id} came after {at}")
            at = update_id
            wanted = self.state(update_id)
            told = ([tuple(one) for one in bids], [tuple(one) for one in asks])
            if told != wanted or check != checksum(*wanted):
                found.append(f"the book at {update_id} is not the true one")
        if not items or items[-1][0] != self.count:
            found.append("the last state of the book is missing")
        return found


class Best(Truth):
    """A channel of newest values: items are update ids."""

    chained = False

    def snapshot(self, seq: int) -> dict[str, Any]:
        prices = {"bid": f"{100 + seq}", "bid_quantity": "1", "ask": f"{101 + seq}"}
        return {"data": {**prices, "ask_quantity": "1", "update_id": seq}}

    def delta(self, seq: int) -> dict[str, Any]:
        return self.snapshot(seq)

    def last(self) -> Any:
        return self.count

    def faults(self, items: Sequence[Any], gaps: int, begins: int) -> list[str]:
        pairs = pairwise(items)
        found = [f"{after} came after {before}" for before, after in pairs if after < before]
        if not items or items[-1] != self.count:
            found.append("the newest value is missing")
        return found


TRUTHS: Final[dict[str, Callable[[int, int], Truth]]] = {
    "trades": lambda count, seed: Trades(count),
    "book": Book,
    "account": lambda count, seed: Account(count),
    "bbo": lambda count, seed: Best(count),
}


def _sorted(levels: dict[str, str], down: bool) -> Levels:
    return sorted(levels.items(), key=lambda level: Decimal(level[0]), reverse=down)


def checksum(bids: Levels, asks: Levels) -> int:
    """CRC-32 over the ten best levels of each side, as docs/streaming.md has it."""
    return zlib.crc32("|".join(f"{p}:{q}" for p, q in [*bids[:10], *asks[:10]]).encode())
