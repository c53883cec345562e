"""The table of calls: what each costs, whether it is signed, and how it is run.

Calls bear their WebSocket API names; REST paths map onto the same names in `tbot.exchange.rest`.
A call that fails raises `ExchangeRefusal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tbot.core.errors import ExchangeRefusal
from tbot.exchange import reading, trading
from tbot.exchange.params import Caller, Params


@dataclass(frozen=True, slots=True)
class Call:
    """A call and what it costs.

    Attributes:
        weight: Charged before the call, by its parameters where they matter.
        weight_refused: Charged only when the call is refused (orders and cancels).
        signed: Whether it needs an API key and a signature.
        changes_orders: Whether fault knobs for order requests apply.
        changes_state: Whether it writes to the log.
    """

    run: Callable[[Caller, Params], Any]
    weight: int | Callable[[Params], int]
    weight_refused: int = 0
    signed: bool = False
    changes_orders: bool = False
    changes_state: bool = False


def _depth_weight(params: Params) -> int:
    value = params.get("limit", "100")
    limit = int(value) if value.isascii() and value.isdigit() and len(value) < 9 else 100
    return 5 if limit <= 100 else 25 if limit <= 500 else 50 if limit <= 1000 else 250


def _by_symbol(one: int, all_of_them: int) -> Callable[[Params], int]:
    return lambda params: one if params.get("symbol") else all_of_them


CALLS: Final[Mapping[str, Call]] = {
    "ping": Call(reading.ping, 1),
    "time": Call(reading.server_time, 1),
    "exchangeInfo": Call(reading.exchange_info, 20),
    "depth": Call(reading.depth, _depth_weight),
    "trades.recent": Call(reading.trades, 25),
    "trades.historical": Call(reading.trades, 25),
    "trades.aggregate": Call(reading.aggregate_trades, 4),
    "klines": Call(reading.klines, 2),
    "uiKlines": Call(reading.klines, 2),
    "avgPrice": Call(reading.average_price, 2),
    "ticker.24hr": Call(reading.ticker_24hr, _by_symbol(2, 80)),
    "ticker.price": Call(reading.ticker_price, _by_symbol(2, 4)),
    "ticker.book": Call(reading.ticker_book, _by_symbol(2, 4)),
    "order.place": Call(trading.place, 0, 1, signed=True, changes_orders=True, changes_state=True),
    "order.test": Call(trading.place_test, 1, signed=True),
    "order.status": Call(trading.status, 4, signed=True),
    "order.cancel": Call(
        trading.cancel, 0, 1, signed=True, changes_orders=True, changes_state=True
    ),
    "openOrders.status": Call(trading.open_orders, _by_symbol(6, 80), signed=True),
    "openOrders.cancelAll": Call(
        trading.cancel_all, 0, 1, signed=True, changes_orders=True, changes_state=True
    ),
    "allOrders": Call(trading.all_orders, 20, signed=True),
    "myTrades": Call(
        trading.my_trades, lambda params: 5 if params.get("orderId") else 20, signed=True
    ),
    "account.status": Call(trading.account_status, 20, signed=True),
    "account.commission": Call(trading.account_commission, 20, signed=True),
    "account.rateLimits.orders": Call(trading.order_limits, 40, signed=True),
    "paper.deposit": Call(trading.deposit, 1, signed=True, changes_state=True),
}


def invoke(caller: Caller, name: str, params: Params) -> Any:
    """Charge the weight of a call and run it.

    Raises:
        ExchangeRefusal: The call was refused, or the address's weight is used up (-1003, 429).
    """
    call = CALLS[name]
    window = caller.floor.limits.weight(caller.address, caller.now_ms)
    if window.count >= window.limit:
        raise ExchangeRefusal(
            -1003,
            f"Too much request weight used; current limit is {window.limit} request weight per "
            "1 MINUTE. Please use WebSocket Streams for live updates to avoid polling the API.",
            429,
            window.left_s(caller.now_ms),
        )
    window.count += call.weight if isinstance(call.weight, int) else call.weight(params)
    try:
        return call.run(caller, params)
    except ExchangeRefusal:
        window.count += call.weight_refused
        raise
