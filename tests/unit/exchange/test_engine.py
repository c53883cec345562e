"""Matching, one rule at a time."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from tbot.exchange.instruments import Refusal
from tbot.exchange.model import Filled, Status
from tbot.exchange.outcome import Outcome

D = Decimal
BIDS = [("100.00", "2"), ("99.00", "3")]
ASKS = [("101.00", "1"), ("102.00", "4")]


def done(outcome: Outcome | Refusal) -> Outcome:
    assert isinstance(outcome, Outcome), outcome
    return outcome


def fills(outcome: Outcome | Refusal | None) -> list[tuple[int, str, str, bool]]:
    """(order id, price, quantity, maker) of every fill."""
    assert isinstance(outcome, Outcome), outcome
    return [
        (e.order_id, str(e.price), str(e.quantity), e.maker)
        for e in outcome.effects
        if isinstance(e, Filled)
    ]


def test_market_buy_walks_the_recorded_asks(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    outcome = done(pit.order("BUY", "3"))
    assert fills(outcome) == [(1, "101.00", "1", False), (1, "102.00", "2", False)]
    assert outcome.order and outcome.order.status is Status.FILLED
    assert outcome.order.executed_quote == D("305.00")
    account = pit.state.account("main")
    assert account.free("USDT") == D("1000000") - D("305")
    assert account.free("BTC") == D("100") + D("3") * D("0.999")
    assert pit.state.imbalance() == {}


def test_taken_liquidity_stays_taken_until_the_source_sets_the_level(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    pit.order("BUY", "1")
    assert fills(pit.order("BUY", "1")) == [(2, "102.00", "1", False)]
    pit.depth(bids=[("98.00", "1")])
    assert fills(pit.order("BUY", "1")) == [(3, "102.00", "1", False)]
    pit.depth(asks=[("101.00", "1")])
    assert fills(pit.order("BUY", "1")) == [(4, "101.00", "1", False)]


def test_market_order_by_quote_amount_buys_whole_steps(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    outcome = done(pit.order("BUY", quote="150.00"))
    assert outcome.order is not None
    assert outcome.order.status is Status.FILLED
    assert outcome.order.quantity == outcome.order.executed == D("1") + D("0.48039")
    assert outcome.order.executed_quote <= D("150.00")


def test_market_order_without_enough_liquidity_expires_with_what_it_got(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    outcome = done(pit.order("BUY", "6"))
    assert outcome.order is not None
    assert outcome.order.status is Status.EXPIRED
    assert outcome.order.executed == D("5")
    by_quote = done(pit.order("SELL", quote="9000"))
    assert by_quote.order is not None
    assert (by_quote.order.status, by_quote.order.executed) == (Status.EXPIRED, D("5"))
    assert by_quote.order.quantity == D("5")


def test_limit_order_takes_then_rests_and_gets_the_better_price(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    outcome = done(pit.order("BUY", "2", "101.50"))
    assert fills(outcome) == [(1, "101.00", "1", False)]
    assert outcome.order is not None and outcome.order.status is Status.PARTIALLY_FILLED
    held = pit.state.account("main").balance("USDT")
    assert held.locked == D("101.50")
    assert held.free == D("1000000") - D("101") - D("101.50")


def test_post_only_order_never_takes(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    refusal = pit.order("BUY", "1", "101.00", kind="LIMIT_MAKER")
    assert refusal == Refusal(-2010, "Order would immediately match and take.")
    assert done(pit.order("BUY", "1", "100.99", kind="LIMIT_MAKER")).order


def test_ioc_expires_its_rest_and_fok_takes_all_or_nothing(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    fok = done(pit.order("BUY", "2", "101.00", tif="FOK"))
    assert fok.order and (fok.order.status, fok.order.executed) == (Status.EXPIRED, D(0))
    ioc = done(pit.order("BUY", "2", "101.00", tif="IOC"))
    assert ioc.order and (ioc.order.status, ioc.order.executed) == (Status.EXPIRED, D("1"))
    full = done(pit.order("BUY", "4", "102.00", tif="FOK"))
    assert full.order and full.order.status is Status.FILLED
    assert pit.state.account("main").balance("USDT").locked == 0


def test_resting_orders_trade_with_each_other_by_price_then_time(pit: Any) -> None:
    pit.book([("90.00", "1")], [("110.00", "1")])
    pit.order("SELL", "1", "105.00")  # 1
    pit.order("SELL", "1", "104.00")  # 2
    pit.order("SELL", "1", "104.00")  # 3
    assert fills(pit.order("BUY", "2.5", "105.00")) == [
        (2, "104.00", "1", True),
        (4, "104.00", "1", False),
        (3, "104.00", "1", True),
        (4, "104.00", "1", False),
        (1, "105.00", "0.5", True),
        (4, "105.00", "0.5", False),
    ]
    assert pit.state.imbalance() == {}


def test_orders_of_one_account_may_meet(pit: Any) -> None:
    pit.book([("90.00", "1")], [("110.00", "1")])
    pit.order("SELL", "1", "100.00")
    outcome = done(pit.order("BUY", "1", "100.00"))
    first, second = (e for e in outcome.effects if isinstance(e, Filled))
    assert first.trade_id == second.trade_id
    assert outcome.prints[0].id == first.trade_id
    assert not outcome.prints[0].buyer_is_maker


def test_trade_through_a_resting_order_fills_it_at_its_price(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    pit.order("BUY", "1", "100.50")
    assert pit.trade("100.00", "0.4", seller_aggressed=False) is None
    assert fills(pit.trade("100.20", "0.4", seller_aggressed=True)) == [(1, "100.50", "0.4", True)]
    assert fills(pit.trade("100.20", "5", seller_aggressed=True)) == [(1, "100.50", "0.6", True)]
    assert pit.state.imbalance() == {}


def test_trade_at_the_price_serves_the_quantity_ahead_first(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    pit.order("BUY", "1", "100.00")  # behind the market's 2
    assert pit.trade("100.00", "1.5", seller_aggressed=True) is None
    assert fills(pit.trade("100.00", "1", seller_aggressed=True)) == [(1, "100.00", "0.5", True)]


def test_what_users_take_moves_the_queue_forward(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    pit.order("SELL", "1", "101.00")  # behind the market's 1
    assert fills(pit.order("BUY", "0.4")) == [(2, "101.00", "0.4", False)]
    assert fills(pit.trade("101.00", "0.7", seller_aggressed=False)) == [(1, "101.00", "0.1", True)]


def test_a_better_market_price_comes_before_users_orders(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    pit.order("SELL", "1", "101.50")
    assert fills(pit.order("BUY", "3")) == [
        (2, "101.00", "1", False),
        (1, "101.50", "1", True),
        (2, "101.50", "1", False),
        (2, "102.00", "1", False),
    ]


def test_shrinking_level_moves_a_resting_order_forward(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    pit.order("BUY", "1", "100.00")
    pit.depth(bids=[("100.00", "0.25")])
    assert fills(pit.trade("100.00", "0.5", seller_aggressed=True)) == [(1, "100.00", "0.25", True)]


def test_market_book_that_crosses_a_resting_order_fills_it(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    pit.order("BUY", "3", "100.50")
    crossed = pit.depth(asks=[("100.40", "2")])
    assert fills(crossed) == [(1, "100.50", "2", True)]
    assert pit.market.book.asks.live.best() == D("101.00")
    again = pit.best("100.10", "1", "100.45", "5")
    assert fills(again) == [(1, "100.50", "1", True)]


def test_best_prices_overrule_stale_depth(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    pit.best("101.50", "1", "101.80", "2")
    assert fills(pit.order("BUY", "1")) == [(1, "101.80", "1", False)]
    assert fills(pit.order("SELL", "1")) == [(2, "101.50", "1", False)]


def test_duplicate_client_id_among_open_orders_is_refused_and_reusable_after(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    first = done(pit.order("BUY", "1", "99.00", client_id="x"))
    assert pit.order("BUY", "1", "99.00", client_id="x") == Refusal(-2010, "Duplicate order sent.")
    assert first.order is not None
    pit.engine.cancel("main", first.order, "k", pit.now_ms)
    second = done(pit.order("BUY", "1", "99.00", client_id="x"))
    assert second.order is not None
    assert pit.state.find("main", None, "x") is second.order


def test_filters_and_funds_refuse_in_the_venues_words(pit: Any) -> None:
    pit.book(BIDS, ASKS)
    pit.market.average_price = D("100")

    def code(outcome: Outcome | Refusal) -> str:
        assert isinstance(outcome, Refusal)
        return f"{outcome.code} {outcome.message}"

    assert code(pit.order("BUY", "1", "100.001")) == "-1013 Filter failure: PRICE_FILTER"
    assert code(pit.order("BUY", "0.000001", "100")) == "-1013 Filter failure: LOT_SIZE"
    assert code(pit.order("BUY", "9001", "100")) == "-1013 Filter failure: LOT_SIZE"
    assert code(pit.order("BUY", "901")) == "-1013 Filter failure: MARKET_LOT_SIZE"
    assert code(pit.order("BUY", "0.01", "100")) == "-1013 Filter failure: NOTIONAL"
    assert code(pit.order("BUY", "1", "501")) == "-1013 Filter failure: PERCENT_PRICE_BY_SIDE"
    assert code(pit.order("SELL", "101", "100")).startswith("-2010 Account has insufficient")
    assert code(pit.order("BUY", "1", "100", account="poor")).startswith("-2010")
    assert not pit.state.orders
