"""What an order must satisfy before it is accepted: pure.

Entry points: `OrderRequest`, `check`.

The checks run from the cheapest and most general to the account's own, and the first that fails
decides, so that a caller who mends one thing at a time always gets further.
"""

from __future__ import annotations

import decimal
from decimal import Decimal

import msgspec

from tbot.core import money
from tbot.core.refusals import Reason, Refused
from tbot.ledger.entries import Ledger, Limits
from tbot.market.book import Reference
from tbot.venues.base import Instrument, OrderType, Side, TimeInForce


class OrderRequest(msgspec.Struct, frozen=True):
    """What a user asks for. Exactly one of `quantity` and `quote_amount` is given."""

    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    quantity: Decimal | None
    quote_amount: Decimal | None
    limit_price: Decimal | None
    post_only: bool = False
    client_order_id: str | None = None


class Hold(msgspec.Struct, frozen=True):
    """What is held for an order until it ends."""

    asset: str
    amount: Decimal


def check(
    request: OrderRequest,
    instrument: Instrument,
    reference: Reference | None,
    limits: Limits,
    ledger: Ledger,
    open_orders: int,
) -> Hold | Refused:
    """Whether an order may be accepted, and what to hold for it.

    Args:
        reference: A fresh market price; None when there is none. A market order needs one, and
            so does a limit order, for the collar.

    Returns:
        The hold, or the first rule that the order breaks.
    """
    if limits.allowed_instruments is not None and request.symbol not in limits.allowed_instruments:
        return Refused(Reason.INSTRUMENT_NOT_ALLOWED, f"{request.symbol} is not on the list")
    if not instrument.trading:
        return Refused(Reason.INSTRUMENT_HALTED, f"{request.symbol} is not trading")
    refused = _check_grid(request, instrument)
    if refused is not None:
        return refused
    price = _worst_price(request, reference, limits)
    if isinstance(price, Refused):
        return price
    refused = _check_notional(request, instrument, price, limits)
    if refused is not None:
        return refused
    overdrawn = ledger.overdrawn()
    if overdrawn:
        return Refused(
            Reason.ACCOUNT_NEGATIVE, f"{', '.join(overdrawn)} below zero", {"assets": overdrawn}
        )
    if open_orders >= limits.max_open_orders:
        return Refused(
            Reason.MAX_OPEN_ORDERS,
            f"{open_orders} open orders; the limit is {limits.max_open_orders}",
            {"open_orders": open_orders, "limit": limits.max_open_orders},
        )
    hold = _hold(request, instrument, price)
    available = ledger.available(hold.asset)
    if available < hold.amount:
        needed, has = money.text(hold.amount), money.text(available)
        return Refused(
            Reason.INSUFFICIENT_FUNDS,
            f"the order needs {needed} {hold.asset}; {has} is available",
            {"asset": hold.asset, "needed": needed, "available": has},
        )
    return hold


def _check_grid(request: OrderRequest, instrument: Instrument) -> Refused | None:
    price, quantity = request.limit_price, request.quantity
    if price is not None:
        if not money.is_multiple(price, instrument.tick):
            tick = money.text(instrument.tick)
            return Refused(
                Reason.PRICE_OFF_TICK, f"the price must be a multiple of {tick}", {"tick": tick}
            )
        low, high = instrument.price_min, instrument.price_max
        if price < low or (high and price > high):
            return _range(Reason.PRICE_OUT_OF_RANGE, "price", low, high)
    if quantity is not None:
        market = request.type is OrderType.MARKET
        step = instrument.market_step if market and instrument.market_step else instrument.step
        if not money.is_multiple(quantity, step):
            return Refused(
                Reason.QUANTITY_OFF_STEP,
                f"the quantity must be a multiple of {money.text(step)}",
                {"step": money.text(step)},
            )
        high = instrument.quantity_max
        if market and instrument.market_quantity_max:
            high = min(high, instrument.market_quantity_max)
        if quantity < instrument.quantity_min or quantity > high:
            return _range(Reason.QUANTITY_OUT_OF_RANGE, "quantity", instrument.quantity_min, high)
    if request.quote_amount is not None:
        scale = instrument.quote_scale
        if money.scale_of(request.quote_amount) > scale:
            return Refused(
                Reason.AMOUNT_TOO_PRECISE,
                f"{instrument.quote} has {scale} decimals",
                {"scale": scale},
            )
    return None


def _range(reason: Reason, what: str, low: Decimal, high: Decimal) -> Refused:
    facts = {"min": money.text(low), "max": money.text(high)}
    return Refused(reason, f"the {what} must be from {facts['min']} to {facts['max']}", facts)


def _worst_price(
    request: OrderRequest, reference: Reference | None, limits: Limits
) -> Decimal | Refused:
    """The price at which the order is checked and held: its limit, or the market and the collar."""
    touch = None
    if reference is not None:
        touch = reference.ask if request.side is Side.BUY else reference.bid
    if touch is None or limits.price_collar >= 1:
        return Refused(
            Reason.NO_MARKET_PRICE,
            f"no fresh price of {request.symbol} on the side that this order would meet",
        )
    buying = request.side is Side.BUY
    bound = touch * (1 + limits.price_collar if buying else 1 - limits.price_collar)
    price = request.limit_price
    if price is None:
        return bound
    if price > bound if buying else price < bound:
        facts = {"market": money.text(touch), "bound": money.text(bound)}
        return Refused(
            Reason.PRICE_OUTSIDE_COLLAR,
            f"with the market at {facts['market']} the price may not be"
            f" {'above' if buying else 'below'} {facts['bound']}",
            facts,
        )
    return price


def _check_notional(
    request: OrderRequest, instrument: Instrument, price: Decimal, limits: Limits
) -> Refused | None:
    if request.quote_amount is not None:
        notional = request.quote_amount
    else:
        assert request.quantity is not None
        notional = request.quantity * price
    low, high = instrument.notional_min, instrument.notional_max
    if notional < low or (high is not None and notional > high):
        facts = {"notional": money.text(notional), "min": money.text(low)}
        bounds = f"at least {facts['min']}"
        if high is not None:
            facts["max"] = money.text(high)
            bounds += f" and at most {facts['max']}"
        return Refused(
            Reason.NOTIONAL_OUT_OF_RANGE,
            f"the order is worth {facts['notional']} {instrument.quote}; it must be {bounds}",
            facts,
        )
    if notional > limits.max_order_notional:
        facts = {
            "notional": money.text(notional),
            "limit": money.text(limits.max_order_notional),
        }
        return Refused(
            Reason.MAX_ORDER_NOTIONAL,
            f"the order is worth {facts['notional']} {instrument.quote}; the account's limit is"
            f" {facts['limit']}",
            facts,
        )
    return None


def _hold(request: OrderRequest, instrument: Instrument, price: Decimal) -> Hold:
    """Funds for the worst case: the limit price, or the market moved by the whole collar."""
    if request.side is Side.BUY:
        if request.quote_amount is not None:
            return Hold(instrument.quote, request.quote_amount)
        assert request.quantity is not None
        cost = money.quantize(request.quantity * price, instrument.quote_scale, decimal.ROUND_UP)
        return Hold(instrument.quote, cost)
    if request.quantity is not None:
        return Hold(instrument.base, request.quantity)
    assert request.quote_amount is not None
    steps = money.divide(request.quote_amount, price * instrument.step, 0, decimal.ROUND_UP)
    return Hold(instrument.base, steps * instrument.step)
