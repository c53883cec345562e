"""Lists that are longer than a page: everything on them once, wherever a page happens to end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tbot.core.errors import VenueDown
from tbot.venues.base import Instrument
from tbot.venues.binance.lists import AccountLists
from tbot.venues.binance.rest import RestCalls

PAGE = 1000
SINCE = datetime(2026, 1, 1, tzinfo=UTC)
INSTRUMENT = cast("Instrument", SimpleNamespace(venue_symbol="BTCUSDT"))  # lists need no more


class Listed:
    """Answers questions for lists as the venue does: a page of at most so many, by id."""

    def __init__(self, orders: list[int], trades: list[tuple[int, int]]) -> None:
        self.lists: dict[str, list[dict[str, Any]]] = {
            "/api/v3/openOrders": [],
            "/api/v3/allOrders": [{"orderId": n, "clientOrderId": f"x{n}"} for n in orders],
            "/api/v3/myTrades": [{"id": number, "orderId": order} for number, order in trades],
        }

    async def get(self, path: str, params: Mapping[str, Any], **_how: Any) -> list[dict[str, Any]]:
        key = "id" if path.endswith("myTrades") else "orderId"
        first = params.get("fromId", 0) if key == "id" else params.get("orderId", 0)
        return [item for item in self.lists[path] if item[key] >= first][
            : params.get("limit", PAGE)
        ]


def lists(orders: list[int], trades: list[tuple[int, int]]) -> AccountLists:
    return AccountLists(cast("RestCalls", Listed(orders, trades)))


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 1])
async def test_every_order_is_listed_once(count: int) -> None:
    found = await lists(list(range(1, count + 1)), []).all_orders(INSTRUMENT)
    assert [order["orderId"] for order in found] == list(range(1, count + 1))


@pytest.mark.parametrize("before", [PAGE - 2, PAGE - 1, PAGE])
async def test_a_trade_between_two_of_our_orders_is_seen_from_both_sides(before: int) -> None:
    """Both sides have the trade's id. What only the second shows must not be given up."""
    trades = [(number, 1) for number in range(1, before + 1)]
    trades += [(before + 1, 1), (before + 1, 3), *[(before + 2 + n, 1) for n in range(PAGE)]]
    with pytest.raises(VenueDown, match="an order that its order list lacks"):
        await lists([1, 2], trades).search("tb1", INSTRUMENT, SINCE)
    assert await lists([1, 2, 3], trades).search("tb1", INSTRUMENT, SINCE) is None
