"""The screen of `tbot watch`: it fits, whatever the terminal's size, and says what matters."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from tbot.cli.watch_screen import CANDLES_MAX, View, plain, screen
from tbot.client import Book, Candle, MarketStatus, Order, Ticker
from tbot.client.models import Halt

AT = datetime(2024, 8, 8, 23, tzinfo=UTC)


def candle(number: int, open_: str, close: str, **changes: Any) -> Candle:
    low, high = sorted((Decimal(open_), Decimal(close)))
    fields: dict[str, Any] = {
        "start": AT + timedelta(minutes=number),
        "open": Decimal(open_),
        "high": high + 1,
        "low": low - 1,
        "close": Decimal(close),
        "volume": Decimal(1),
        "quote_volume": Decimal(100),
        "trades": 1,
        "first_trade_id": 1,
        "last_trade_id": 1,
        "complete": True,
        "closed": True,
        **changes,
    }
    return Candle(**fields)


def order(state: str) -> Order:
    one = Decimal(1)
    return Order(
        UUID(int=1), UUID(int=2), "paper", "BTC-USDT", "buy", "limit", "gtc", False, state, one,
        one, False, AT, AT, 7, quantity=Decimal("2.5"), limit_price=Decimal("61000.5"),
    )  # fmt: skip


def full_view() -> View:
    view = View("BTC-USDT", "1m", account="a1")
    view.ticker = Ticker(Decimal("61685.99"), Decimal("61685.98"), Decimal(1), Decimal(61686))
    view.book = Book("BTC-USDT", 20)
    view.book.replace(1, 1, [["61685.98", "0.5"], ["61685", "2"]], [["61686", "1"]])
    for number in range(200):
        view.put(candle(number, str(61000 + number), str(61001 + number * 2 % 77)))
    view.orders = [order("new"), order("filled")]
    halt = Halt("venue:paper", "maintenance\x1b[2J", AT)
    view.status = MarketStatus("paper", True, "rebuilding", "halted", [halt])
    return view


def visible(row: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", row)


@given(st.integers(1, 250), st.integers(1, 80), st.booleans())
def test_it_fits_every_terminal(width: int, height: int, empty: bool) -> None:
    view = View("BTC-USDT", "1m") if empty else full_view()
    rows = screen(view, width, height)
    assert 0 < len(rows) <= height
    for row in rows:
        assert len(visible(row)) <= width
        styles = re.findall(r"\x1b\[[0-9;]*m", row)
        assert not styles or styles[-1] == "\x1b[0m", "no style runs on into the next row"


def test_it_shows_prices_book_candles_orders_and_what_is_wrong() -> None:
    rows = screen(full_view(), 120, 40)
    shown = "\n".join(visible(row) for row in rows)
    for words in (
        "BTC-USDT", "61685.99", "ask 61686", "HALTED: maintenance?[2J", "STALE",
        "book rebuilding", "spread 0.02", "█", "│", "2.5 BTC-USDT at 61000.5: new, 1 filled",
        "q quits",
    ):  # fmt: skip
        assert words in shown, words
    assert "\x1b[2J" not in "".join(rows), "what people wrote is no command"
    assert screen(full_view(), 120, 40, colour=False) == [visible(row) for row in rows]


def test_a_rising_candle_is_green_and_a_doubtful_one_dim() -> None:
    view = View("BTC-USDT", "1m")
    view.put(candle(0, "100", "110"))
    view.put(candle(1, "110", "100", complete=False))
    text = "\n".join(screen(view, 60, 20))
    assert "\x1b[0;32m" in text and "\x1b[0;31;2m" in text


def test_candles_are_bounded_and_replaced_by_their_start() -> None:
    view = View("BTC-USDT", "1m")
    for number in range(CANDLES_MAX + 10):
        view.put(candle(number, "1", "2"))
    view.put(candle(CANDLES_MAX + 9, "1", "3"))
    assert len(view.candles) == CANDLES_MAX
    assert view.candles[max(view.candles)].close == 3


def test_the_market_in_one_line() -> None:
    assert plain(full_view()).startswith("BTC-USDT 61685.99 bid 61685.98 ask 61686 HALTED")
