"""The signed calls: orders, executions, the account, and the paper exchange's deposits."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any, Final

from tbot.core.errors import ExchangeRefusal
from tbot.core.money import ZERO
from tbot.exchange import wire
from tbot.exchange.instruments import Refusal
from tbot.exchange.model import Deposited, Execution, Order, OrderType, Side, TimeInForce
from tbot.exchange.outcome import NewOrder
from tbot.exchange.params import (
    Caller,
    Params,
    amount,
    integer,
    limit_of,
    mandatory,
    refuse,
    symbol_of,
)

_CLIENT_ID: Final = re.compile(r"[.A-Z:/a-z0-9_-]{1,36}")
_END_OF_TIME: Final = 1 << 62
_ASSET: Final = re.compile(r"[A-Z0-9]{1,20}")
_DEPOSIT_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def _choice[T](table: Mapping[str, T], params: Params, name: str, code: int, text: str) -> T:
    value = table.get(mandatory(params, name))
    if value is None:
        raise ExchangeRefusal(code, text)
    return value


def _forbidden(params: Params, *names: str) -> None:
    for name in names:
        if params.get(name):
            raise ExchangeRefusal(-1106, f"Parameter '{name}' sent when not required.")


def _client_id(params: Params, name: str) -> str:
    value = params.get(name)
    if not value:
        return secrets.token_hex(11)
    if not _CLIENT_ID.fullmatch(value):
        raise ExchangeRefusal(
            -1100,
            f"Illegal characters found in parameter '{name}'; legal range is "
            "'^[\\.A-Z\\:/a-z0-9_-]{1,36}$'.",
        )
    return value


def new_order(caller: Caller, params: Params) -> NewOrder:
    """Read and check the parameters of a new order."""
    symbol = symbol_of(caller, params)
    side = _choice(Side.__members__, params, "side", -1117, "Invalid side.")
    kind = _choice(OrderType.__members__, params, "type", -1116, "Invalid orderType.")
    _forbidden(params, "stopPrice", "trailingDelta", "icebergQty")
    if params.get("selfTradePreventionMode", "NONE") != "NONE":
        raise ExchangeRefusal(-1013, "This symbol does not allow the specified self-trade "
                              "prevention mode.")  # fmt: skip
    in_force = TimeInForce.GTC
    if kind is OrderType.LIMIT:
        in_force = _choice(
            TimeInForce.__members__, params, "timeInForce", -1115, "Invalid timeInForce."
        )
    else:
        _forbidden(params, "timeInForce")
    quote_quantity = ZERO
    if kind is OrderType.MARKET:
        _forbidden(params, "price")
        if params.get("quoteOrderQty"):
            _forbidden(params, "quantity")
            quote_quantity = amount(params, "quoteOrderQty")
        else:
            mandatory(params, "quantity")
    else:
        _forbidden(params, "quoteOrderQty")
        mandatory(params, "price")
        mandatory(params, "quantity")
    price, quantity = amount(params, "price"), amount(params, "quantity")
    if kind is OrderType.MARKET and not quantity and not quote_quantity:
        raise ExchangeRefusal(-1013, "Invalid quantity.")
    return NewOrder(
        account=caller.account,
        symbol=symbol,
        side=side,
        type=kind,
        time_in_force=in_force,
        price=price,
        quantity=quantity,
        quote_quantity=quote_quantity,
        client_id=_client_id(params, "newClientOrderId"),
    )


def _command(name: str, params: Params) -> dict[str, str]:
    told = {key: value for key, value in params.items() if key not in ("signature", "apiKey")}
    return {"method": name, **told}


def _count_order(caller: Caller) -> None:
    ten_s, day = caller.floor.limits.orders(caller.account, caller.now_ms)
    for window, words in ((ten_s, "10 SECOND"), (day, "1 DAY")):
        if window.count >= window.limit:
            raise ExchangeRefusal(
                -1015,
                f"Too many new orders; current limit is {window.limit} orders per {words}.",
                429,
                window.left_s(caller.now_ms),
            )
    ten_s.count += 1
    day.count += 1


def place(caller: Caller, params: Params) -> Any:
    """Place an order. Answers FULL for limit and market orders unless asked otherwise."""
    new = new_order(caller, params)
    default = "ACK" if new.type is OrderType.LIMIT_MAKER else "FULL"
    answer = params.get("newOrderRespType") or default
    if answer not in ("ACK", "RESULT", "FULL"):
        raise ExchangeRefusal(-1100, "Illegal characters found in parameter 'newOrderRespType'.")
    _count_order(caller)
    outcome = caller.floor.place(new, _command("order.place", params))
    if isinstance(outcome, Refusal):
        raise refuse(outcome)
    assert outcome.order is not None
    return wire.result_of(outcome.order, answer, caller.floor.fills_of(outcome))


def place_test(caller: Caller, params: Params) -> Any:
    """Check an order without placing it."""
    new = new_order(caller, params)
    outcome = caller.floor.place(new, {}, test=True)
    if isinstance(outcome, Refusal):
        raise refuse(outcome)
    return {}


def _find(caller: Caller, params: Params, missing: ExchangeRefusal) -> Order:
    order_id = integer(params, "orderId")
    client_id = params.get("origClientOrderId") or None
    if order_id is None and client_id is None:
        raise ExchangeRefusal(
            -1102,
            "Param 'origClientOrderId' or 'orderId' must be sent, but both were empty/null!",
        )
    order = caller.floor.state.find(caller.account, order_id, client_id)
    if order is None or order.symbol != params["symbol"]:
        raise missing
    return order


def status(caller: Caller, params: Params) -> Any:
    """One order, open or kept in history."""
    symbol_of(caller, params)
    return wire.queried(_find(caller, params, ExchangeRefusal(-2013, "Order does not exist.")))


def cancel(caller: Caller, params: Params) -> Any:
    """Cancel an open order."""
    symbol_of(caller, params)
    unknown = ExchangeRefusal(-2011, "Unknown order sent.")
    order = _find(caller, params, unknown)
    restriction = params.get("cancelRestrictions")
    if restriction == "ONLY_NEW" and order.executed:
        raise ExchangeRefusal(-2011, "Order was not canceled due to cancel restrictions.")
    cancel_id = _client_id(params, "newClientOrderId")
    outcome = caller.floor.cancel(
        caller.account, order, cancel_id, _command("order.cancel", params)
    )
    if isinstance(outcome, Refusal):
        raise unknown
    return wire.canceled(order, cancel_id)


def cancel_all(caller: Caller, params: Params) -> Any:
    """Cancel every open order of a symbol."""
    symbol = symbol_of(caller, params)
    orders = list(caller.floor.state.open_orders(caller.account, symbol))
    if not orders:
        raise ExchangeRefusal(-2011, "Unknown order sent.")
    command = _command("openOrders.cancelAll", params)
    answers = []
    for order in orders:
        cancel_id = secrets.token_hex(11)
        caller.floor.cancel(caller.account, order, cancel_id, command)
        answers.append(wire.canceled(order, cancel_id))
    return answers


def open_orders(caller: Caller, params: Params) -> Any:
    """Open orders, of one symbol or all."""
    symbol = symbol_of(caller, params) if params.get("symbol") else None
    found = caller.floor.state.open_orders(caller.account, symbol)
    return [wire.queried(order) for order in found]


def _times(params: Params) -> tuple[int, int]:
    start, end = integer(params, "startTime"), integer(params, "endTime")
    return start or 0, _END_OF_TIME if end is None else end


def all_orders(caller: Caller, params: Params) -> Any:
    """Orders of a symbol, open and kept: the newest, or from an id or time on."""
    symbol = symbol_of(caller, params)
    limit = limit_of(params, 500, 1000)
    first_id = integer(params, "orderId")
    start_ms, end_ms = _times(params)
    from_start = first_id is not None or "startTime" in params
    found: list[Order] = []
    # Newest first, so that a question about recent orders does not walk the whole history.
    for order in reversed(caller.floor.state.orders.values()):
        if order.id < (first_id or 0) or order.time_ms < start_ms:
            break
        if order.account == caller.account and order.symbol == symbol and order.time_ms <= end_ms:
            found.append(order)
            if not from_start and len(found) == limit:
                break
    found.reverse()
    return [wire.queried(order) for order in found[:limit]]


def my_trades(caller: Caller, params: Params) -> Any:
    """Executions of a symbol: of one order, the newest, or from a trade id or time on."""
    symbol = symbol_of(caller, params)
    limit = limit_of(params, 500, 1000)
    order_id, from_id = integer(params, "orderId"), integer(params, "fromId")
    start_ms, end_ms = _times(params)
    account = caller.floor.state.account(caller.account)
    if order_id is not None:
        of_order = account.by_order.get(order_id, ())
        picked = [e for e in of_order if e.symbol == symbol and e.id >= (from_id or 0)]
        return [wire.my_trade(execution) for execution in picked[:limit]]
    from_start = from_id is not None or "startTime" in params
    found: list[Execution] = []
    for execution in reversed(account.executions):
        if execution.time_ms < start_ms:
            break
        if execution.symbol != symbol:
            continue  # whose ids are numbers of their own
        if execution.id < (from_id or 0):
            break
        if execution.time_ms <= end_ms:
            found.append(execution)
            if not from_start and len(found) == limit:
                break
    found.reverse()
    return [wire.my_trade(execution) for execution in found[:limit]]


# Account


def account_status(caller: Caller, params: Params) -> Any:
    """Balances and fee rates."""
    floor = caller.floor
    return wire.account_status(
        floor.state.account(caller.account),
        floor.settings.maker_fee,
        floor.settings.taker_fee,
        uid=1,
        omit_zero=params.get("omitZeroBalances") == "true",
    )


def account_commission(caller: Caller, params: Params) -> Any:
    """Fee rates of a symbol."""
    settings = caller.floor.settings
    return wire.commission(symbol_of(caller, params), settings.maker_fee, settings.taker_fee)


def order_limits(caller: Caller, _params: Params) -> Any:
    """How many orders the account placed in the current windows."""
    return caller.floor.limits.order_entries(caller.account, caller.now_ms)


def deposit(caller: Caller, params: Params) -> Any:
    """Paper only: add funds once per id."""
    deposit_id, asset = mandatory(params, "id"), mandatory(params, "asset")
    if not _DEPOSIT_ID.fullmatch(deposit_id) or not _ASSET.fullmatch(asset):
        raise ExchangeRefusal(-1100, "Illegal characters found in parameter 'id' or 'asset'.")
    mandatory(params, "amount")
    value = amount(params, "amount")
    if not value:
        raise ExchangeRefusal(-1130, "Data sent for parameter 'amount' is not valid.")
    floor = caller.floor
    outcome = floor.deposit(
        Deposited(deposit_id, caller.account, asset, value), _command("deposit", params)
    )
    if isinstance(outcome, Refusal):
        raise refuse(outcome)
    held = floor.state.account(caller.account).balance(asset)
    return {
        "id": deposit_id,
        "asset": asset,
        "amount": wire.decimal_text(value),
        "free": wire.decimal_text(held.free),
        "locked": wire.decimal_text(held.locked),
        "replayed": not outcome.effects,
    }
