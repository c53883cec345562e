"""What an account is worth."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from tbot.market.book import Reference
from tbot.orders.model import Position
from tbot.web.valuation import Prices, positions_json, value

D = Decimal


def prices(**middle: str) -> Prices:
    known: Mapping[str, Reference] = {
        symbol.replace("_", "-"): Reference(symbol, D(price), D(price), None, 0.0)
        for symbol, price in middle.items()
    }
    return known.get


def test_everything_priced() -> None:
    position = Position(symbol="BTC-USDT", quantity=D(2), cost=D(150), realized_pnl=D(5))
    worth = value({"BTC": D(2), "USDT": D(10)}, [position], "USDT", prices(BTC_USDT="100"))
    assert (worth.equity, worth.realized, worth.unrealized) == (D(210), D(5), D(50))
    assert worth.complete


def test_an_inverse_market_prices_too_and_rounds_only_its_estimate() -> None:
    worth = value({"USDT": D(10)}, [], "BTC", prices(BTC_USDT="3"))
    assert worth.equity == D("3.33333333")
    assert worth.complete


def test_what_has_no_price_is_not_guessed() -> None:
    worth = value({"BTC": D(2), "USDT": D(10), "DOGE": D(0)}, [], "USDT", prices())
    assert worth.equity == D(10)
    assert not worth.complete
    assert [item.worth for item in worth.assets] == [None, None, D(10)]


def test_a_position_without_price_or_in_another_quote_is_incomplete() -> None:
    own = Position(symbol="BTC-USDT", quantity=D(1), cost=D(1))
    assert not value({}, [own], "USDT", prices()).complete
    foreign = Position(symbol="ETH-BTC", quantity=D(0), realized_pnl=D(1))
    assert not value({}, [foreign], "USDT", prices()).complete
    listed = positions_json([own], prices())[0]
    assert listed["market_price"] is None
    assert listed["unrealized_pnl"] is None
    assert listed["average_cost"] == "1"


def test_a_side_without_prices_falls_back_to_the_last_trade() -> None:
    one_sided = Reference("BTC-USDT", D(99), None, D(98), 0.0)
    worth = value({"BTC": D(1)}, [], "USDT", lambda s: one_sided if s == "BTC-USDT" else None)
    assert worth.equity == D(98)
