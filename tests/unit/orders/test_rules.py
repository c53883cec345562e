"""Each rule refuses what it should, with its own reason, and accepts what it should."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace as revised

from tbot.core import clock
from tbot.core.refusals import Reason, Refused
from tbot.ledger.entries import Balance, Ledger, Limits
from tbot.market.book import Reference
from tbot.orders.rules import Hold, OrderRequest, check
from tbot.venues.base import Instrument, OrderType, Side, TimeInForce

LIMITS = Limits(max_order_notional=Decimal(1000), max_open_orders=3, price_collar=Decimal("0.05"))
INSTRUMENT = Instrument(
    venue="paper",
    symbol="BTC-USDT",
    venue_symbol="BTCUSDT",
    base="BTC",
    quote="USDT",
    base_scale=8,
    quote_scale=2,
    tick=Decimal("0.01"),
    price_min=Decimal(1),
    price_max=Decimal(500),
    step=Decimal("0.001"),
    quantity_min=Decimal("0.01"),
    quantity_max=Decimal(50),
    market_step=Decimal("0.01"),
    market_quantity_max=Decimal(20),
    notional_min=Decimal(5),
    notional_max=Decimal(5000),
    trading=True,
)
BUY = OrderRequest(
    "BTC-USDT", Side.BUY, OrderType.LIMIT, TimeInForce.GTC, Decimal(1), None, Decimal(100)
)
MARKET_BUY = revised(BUY, type=OrderType.MARKET, limit_price=None)
QUOTE_BUY = revised(MARKET_BUY, quantity=None, quote_amount=Decimal("50.25"))
PRICES = Reference("BTC-USDT", Decimal(99), Decimal(100), Decimal(100), clock.boot_s())


def ledger(**balances: str) -> Ledger:
    made = Ledger()
    made.balances = {asset: Balance(Decimal(text)) for asset, text in balances.items()}
    return made


def judged(
    request: OrderRequest = BUY,
    instrument: Instrument = INSTRUMENT,
    reference: Reference | None = PRICES,
    limits: Limits = LIMITS,
    funds: Ledger | None = None,
    open_orders: int = 0,
) -> Any:
    funds = funds or ledger(USDT="10000", BTC="100")
    return check(request, instrument, reference, limits, funds, open_orders)


@pytest.mark.parametrize(
    ("request_", "hold"),
    [
        (BUY, Hold("USDT", Decimal("100.00"))),
        (revised(BUY, limit_price=Decimal("33.33"), quantity=Decimal("0.333")), ("USDT", "11.10")),
        (revised(BUY, side=Side.SELL), Hold("BTC", Decimal(1))),
        (MARKET_BUY, Hold("USDT", Decimal("105.00"))),
        (QUOTE_BUY, Hold("USDT", Decimal("50.25"))),
        (revised(MARKET_BUY, side=Side.SELL), Hold("BTC", Decimal(1))),
        # 50.25 USDT at no worse than 99 less 5 % takes at most 0.535 BTC.
        (revised(QUOTE_BUY, side=Side.SELL), Hold("BTC", Decimal("0.535"))),
    ],
)
def test_what_is_held(request_: OrderRequest, hold: Any) -> None:
    expected = Hold(hold[0], Decimal(hold[1])) if isinstance(hold, tuple) else hold
    assert judged(request_) == expected


@pytest.mark.parametrize(
    ("reason", "case"),
    [
        (Reason.INSTRUMENT_NOT_ALLOWED, {"limits": {"allowed_instruments": ("ETH-USDT",)}}),
        (Reason.INSTRUMENT_HALTED, {"instrument": {"trading": False}}),
        (Reason.PRICE_OFF_TICK, {"request": {"limit_price": Decimal("100.001")}}),
        (Reason.PRICE_OUT_OF_RANGE, {"request": {"limit_price": Decimal("0.5")}}),
        (Reason.PRICE_OUT_OF_RANGE, {"request": {"limit_price": Decimal(501)}}),
        (Reason.QUANTITY_OFF_STEP, {"request": {"quantity": Decimal("0.0105")}}),
        (Reason.QUANTITY_OUT_OF_RANGE, {"request": {"quantity": Decimal("0.009")}}),
        (Reason.QUANTITY_OUT_OF_RANGE, {"request": {"quantity": Decimal(51)}}),
        (Reason.PRICE_OUTSIDE_COLLAR, {"request": {"limit_price": Decimal("105.01")}}),
        (
            Reason.PRICE_OUTSIDE_COLLAR,
            {"request": {"limit_price": Decimal("94.04"), "side": Side.SELL}},
        ),
        (Reason.NOTIONAL_OUT_OF_RANGE, {"request": {"quantity": Decimal("0.04")}}),
        (Reason.NOTIONAL_OUT_OF_RANGE, {"instrument": {"notional_max": Decimal(99)}}),
        (Reason.MAX_ORDER_NOTIONAL, {"limits": {"max_order_notional": Decimal("99.99")}}),
        (Reason.MAX_OPEN_ORDERS, {"limits": {"max_open_orders": 2}}),
        (Reason.NO_MARKET_PRICE, {"reference": {"ask": None}}),
    ],
)
def test_what_is_refused(reason: Reason, case: dict[str, dict[str, Any]]) -> None:
    outcome = judged(
        revised(BUY, **case.get("request", {})),
        replace(INSTRUMENT, **case.get("instrument", {})),
        revised(PRICES, **case.get("reference", {})),
        Limits(
            **{n: getattr(LIMITS, n) for n in LIMITS.__struct_fields__} | case.get("limits", {})
        ),
        open_orders=2,
    )
    assert isinstance(outcome, Refused)
    assert outcome.reason is reason
    assert outcome.detail


def test_a_market_order_has_its_own_grid() -> None:
    assert judged(revised(MARKET_BUY, quantity=Decimal("0.105"))).reason is Reason.QUANTITY_OFF_STEP
    over = judged(revised(MARKET_BUY, quantity=Decimal(21)))
    assert over.reason is Reason.QUANTITY_OUT_OF_RANGE
    fine = judged(revised(QUOTE_BUY, quote_amount=Decimal("50.255")))
    assert fine.reason is Reason.AMOUNT_TOO_PRECISE


def test_without_a_market_nothing_is_accepted() -> None:
    for request in (BUY, MARKET_BUY, QUOTE_BUY):
        assert judged(request, reference=None).reason is Reason.NO_MARKET_PRICE


def test_funds() -> None:
    assert judged(funds=ledger(USDT="100")) == Hold("USDT", Decimal("100.00"))
    short = judged(funds=ledger(USDT="99.99"))
    assert short.reason is Reason.INSUFFICIENT_FUNDS
    assert short.facts == {"asset": "USDT", "needed": "100", "available": "99.99"}
    assert judged(funds=ledger(USDT="100", ETH="-1")).reason is Reason.ACCOUNT_NEGATIVE


def test_a_resting_price_far_from_the_market_is_fine() -> None:
    assert isinstance(judged(revised(BUY, limit_price=Decimal(10))), Hold)
    assert isinstance(judged(revised(BUY, side=Side.SELL, limit_price=Decimal(400))), Hold)
