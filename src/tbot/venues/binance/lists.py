"""What the venue keeps of our account, asked for over REST: orders, executions, balances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, Final

from tbot.core.clock import to_ms
from tbot.core.errors import TBotError, VenueDown
from tbot.venues.base import Instrument, OrderReport, VenueFill
from tbot.venues.binance import wire
from tbot.venues.binance.rest import RestCalls
from tbot.venues.budgets import Priority

_PAGE: Final = 1000
_PAGES_MAX: Final = 100


def readable[T](read: Callable[[], T]) -> T:
    """Read an answer to a question; what cannot be read proves nothing.

    Raises:
        VenueDown: It is not what was asked for.
    """
    try:
        return read()
    except (TBotError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise VenueDown(f"unreadable answer: {error!r}", "unreadable") from error


class AccountLists:
    """The lists of one venue account."""

    def __init__(self, rest: RestCalls) -> None:
        self._rest = rest

    async def open_orders(self, instrument: Instrument | None) -> list[OrderReport]:
        """All open orders, or those of one market."""
        params = {} if instrument is None else {"symbol": instrument.venue_symbol}
        answer = await self._rest.get(
            "/api/v3/openOrders",
            params,
            weight=80 if instrument is None else 6,
            priority=Priority.RESOLVE,
            signed=True,
        )
        return readable(lambda: [wire.order_report(order) for order in answer])

    async def search(
        self, client_id: str, instrument: Instrument, since: datetime
    ) -> OrderReport | None:
        """Look for an order in the open orders, all orders and trades since `since`.

        The answer to a question by id comes from the engine's memory or a database that may lag;
        before an order is given up, every list must agree that there is none.

        Raises:
            VenueDown: A list could not be read, or the lists contradict each other. Ask later.
        """
        for report in await self.open_orders(instrument):
            if report.client_id == client_id:
                return report
        orders = await self.all_orders(instrument, since)
        for order in orders:
            if wire.placed_id(order["clientOrderId"]) == client_id:
                return readable(partial(wire.order_report, order, client_id))
        known = {order["orderId"] for order in orders}
        newest = max(known, default=0)
        params: dict[str, str | int] = {
            "symbol": instrument.venue_symbol,
            "startTime": to_ms(since),
        }
        for trade in await self._pages("/api/v3/myTrades", params, "id", "fromId"):
            # An order older than the list trades on: only one *newer* than the list is a sign
            # that the list lags behind.
            if trade["orderId"] > newest and trade["orderId"] not in known:
                raise VenueDown("the venue's trades name an order that its order list lacks", "lag")
        return None

    async def all_orders(
        self, instrument: Instrument, since: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Orders of one market as the venue lists them, open or not, oldest first."""
        params: dict[str, str | int] = {"symbol": instrument.venue_symbol}
        if since is not None:
            params["startTime"] = to_ms(since)
        else:
            params["orderId"] = 0
        return await self._pages("/api/v3/allOrders", params, "orderId", "orderId")

    async def order_fills(self, instrument: Instrument, venue_order_id: str) -> list[VenueFill]:
        """Every execution of one order."""
        params = {"symbol": instrument.venue_symbol, "orderId": venue_order_id}
        trades = await self._pages("/api/v3/myTrades", params, "id", "fromId", weight=5)
        return readable(
            lambda: [
                wire.own_trade(trade) for trade in trades if str(trade["orderId"]) == venue_order_id
            ]
        )

    async def balances(self) -> Mapping[str, tuple[Decimal, Decimal]]:
        """Asset → (free, locked)."""
        answer = await self._rest.get(
            "/api/v3/account", {}, weight=20, priority=Priority.QUERY, signed=True
        )
        return readable(lambda: wire.balances(answer))

    async def _pages(
        self,
        path: str,
        params: Mapping[str, str | int],
        key: str,
        cursor: str,
        weight: int = 20,
    ) -> list[dict[str, Any]]:
        """A whole list, page by page; the venue orders it by `key`.

        Each page begins where the one before it ended: of a trade between two orders of ours both
        sides have one id, and a page may end between them.
        """
        found: list[dict[str, Any]] = []
        ends: set[tuple[int, int]] = set()
        asked = {**params, "limit": _PAGE}
        for _ in range(_PAGES_MAX):
            page = await self._rest.get(
                path, asked, weight=weight, priority=Priority.RESOLVE, signed=True
            )
            if not isinstance(page, list):
                raise VenueDown(f"unreadable answer to {path}", "unreadable")
            names = readable(partial(_names, page, key))
            found += [item for item, name in zip(page, names, strict=True) if name not in ends]
            if len(page) < _PAGE:
                return found
            # A cursor and a start time exclude each other; the cursor is later than the start.
            asked.pop("startTime", None)
            last = asked[cursor] = names[-1][0]
            ends = {name for name in names if name[0] == last}
        raise VenueDown(f"{path} is longer than {_PAGES_MAX} pages", "too_long")


def _names(page: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, int]]:
    return [(int(item[key]), int(item["orderId"])) for item in page]
