"""What an account is worth: pure.

Entry points: `mark`, `positions_json`, `value`.

An asset is valued at the middle of the best prices (at the last trade where a side is empty) of the
market that trades it against the quote asset, in either direction. What has no fresh price is not
guessed: its value is null, and the whole says that it is not complete.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from tbot.core import money
from tbot.market.book import Reference
from tbot.orders.model import Position

_SCALE: Final = 8
"""Decimals of a valuation: an estimate, rounded half-even, that nothing is ever booked from."""

type Prices = Callable[[str], Reference | None]
"""Fresh prices of a symbol, or None."""


@dataclass(frozen=True, slots=True)
class Valued:
    """An amount of an asset and what it is worth in the quote asset; None where unknown."""

    asset: str
    amount: Decimal
    price: Decimal | None
    worth: Decimal | None


@dataclass(frozen=True, slots=True)
class Equity:
    """An account in one asset.

    Attributes:
        realized, unrealized: Of the positions quoted in that asset.
        complete: Whether everything that the account has is in it.
    """

    equity: Decimal
    assets: tuple[Valued, ...]
    realized: Decimal
    unrealized: Decimal
    complete: bool


def mark(reference: Reference | None) -> Decimal | None:
    """The price to value with.

    Example:
        >>> mark(Reference("BTC-USDT", Decimal(99), Decimal(100), None, 0.0))
        Decimal('99.5')
    """
    if reference is None:
        return None
    if reference.bid is not None and reference.ask is not None:
        return (reference.bid + reference.ask) / 2
    return reference.last


def _price(asset: str, quote: str, prices: Prices) -> Decimal | None:
    if asset == quote:
        return money.ONE
    direct = mark(prices(f"{asset}-{quote}"))
    if direct is not None:
        return direct
    inverse = mark(prices(f"{quote}-{asset}"))
    if not inverse:
        return None
    return money.divide(money.ONE, inverse, money.SCALE_MAX, decimal.ROUND_HALF_EVEN)


def _rounded(worth: Decimal) -> Decimal:
    return money.quantize(worth, _SCALE, decimal.ROUND_HALF_EVEN)


def value(
    totals: Mapping[str, Decimal], positions: Sequence[Position], quote: str, prices: Prices
) -> Equity:
    """What the balances and positions of an account are worth in `quote`.

    Args:
        totals: asset → what the account owns, held amounts included.
    """
    assets = []
    for asset, amount in sorted(totals.items()):
        price = _price(asset, quote, prices)
        worth = None if price is None else _rounded(amount * price)
        assets.append(Valued(asset, amount, price, worth))
    complete = all(item.worth is not None or not item.amount for item in assets)
    realized = unrealized = money.ZERO
    for position in positions:
        if not position.symbol.endswith(f"-{quote}"):
            # Profit in another asset: it is in the balances, but not in these two sums.
            complete = complete and not (position.quantity or position.realized_pnl)
            continue
        realized += position.realized_pnl
        gain = _unrealized(position, mark(prices(position.symbol)))
        if gain is None:
            complete = complete and not position.quantity
        else:
            unrealized += gain
    return Equity(
        equity=sum((item.worth for item in assets if item.worth is not None), money.ZERO),
        assets=tuple(assets),
        realized=realized,
        unrealized=unrealized,
        complete=complete,
    )


def _unrealized(position: Position, price: Decimal | None) -> Decimal | None:
    if not position.quantity:
        return money.ZERO
    return None if price is None else _rounded(position.quantity * price - position.cost)


def positions_json(positions: Sequence[Position], prices: Prices) -> list[dict[str, Any]]:
    """Positions with their market values, in JSON types."""
    listed = []
    for position in positions:
        price = mark(prices(position.symbol))
        average, gain = position.average_cost, _unrealized(position, price)
        listed.append(
            {
                "symbol": position.symbol,
                "quantity": money.text(position.quantity),
                "average_cost": None if average is None else money.text(average),
                "cost": money.text(position.cost),
                "realized_pnl": money.text(position.realized_pnl),
                "market_price": None if price is None else money.text(price),
                "unrealized_pnl": None if gain is None else money.text(gain),
            }
        )
    return listed
