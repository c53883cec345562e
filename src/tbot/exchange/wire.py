"""Binance's shapes of what this exchange knows. Pure: objects in, JSON-ready values out."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final

from tbot.core.money import text
from tbot.exchange.instruments import SCALE, Instrument
from tbot.exchange.model import Execution, Order
from tbot.exchange.outcome import Report
from tbot.exchange.state import Account

_ZERO: Final = "0.00000000"


def decimal_text(value: Decimal) -> str:
    """A number as the venue writes it: eight decimals."""
    return format(value, ".8f")


def result_of(order: Order, kind: str, executions: Iterable[Execution]) -> dict[str, Any]:
    """The answer to a new order: `ACK`, `RESULT` or `FULL`."""
    body: dict[str, Any] = {
        "symbol": order.symbol,
        "orderId": order.id,
        "orderListId": -1,
        "clientOrderId": order.client_id,
        "transactTime": order.updated_ms,
    }
    if kind == "ACK":
        return body
    body |= _amounts(order)
    body["workingTime"] = order.time_ms
    if kind == "FULL":
        body["fills"] = [
            {
                "price": decimal_text(execution.price),
                "qty": decimal_text(execution.quantity),
                "commission": decimal_text(execution.fee),
                "commissionAsset": execution.fee_asset,
                "tradeId": execution.id,
            }
            for execution in executions
        ]
    body["selfTradePreventionMode"] = "NONE"
    return body


def _amounts(order: Order) -> dict[str, Any]:
    return {
        "price": decimal_text(order.price),
        "origQty": decimal_text(order.quantity),
        "executedQty": decimal_text(order.executed),
        "origQuoteOrderQty": decimal_text(order.quote_quantity),
        "cummulativeQuoteQty": decimal_text(order.executed_quote),
        "status": order.status,
        "timeInForce": order.time_in_force,
        "type": order.type,
        "side": order.side,
    }


def canceled(order: Order, cancel_id: str) -> dict[str, Any]:
    """The answer to a cancel: the cancel's id has taken the place of the order's client id."""
    return {
        "symbol": order.symbol,
        "origClientOrderId": order.client_id,
        "orderId": order.id,
        "orderListId": -1,
        "clientOrderId": cancel_id,
        "transactTime": order.updated_ms,
        **_amounts(order),
        "selfTradePreventionMode": "NONE",
    }


def queried(order: Order) -> dict[str, Any]:
    """An order as a query shows it."""
    return {
        "symbol": order.symbol,
        "orderId": order.id,
        "orderListId": -1,
        "clientOrderId": order.client_id,
        **_amounts(order),
        "stopPrice": _ZERO,
        "icebergQty": _ZERO,
        "time": order.time_ms,
        "updateTime": order.updated_ms,
        "isWorking": True,
        "workingTime": order.time_ms,
        "selfTradePreventionMode": "NONE",
    }


def my_trade(execution: Execution) -> dict[str, Any]:
    """An execution as `myTrades` shows it."""
    return {
        "symbol": execution.symbol,
        "id": execution.id,
        "orderId": execution.order_id,
        "orderListId": -1,
        "price": decimal_text(execution.price),
        "qty": decimal_text(execution.quantity),
        "quoteQty": decimal_text(execution.quote_quantity),
        "commission": decimal_text(execution.fee),
        "commissionAsset": execution.fee_asset,
        "time": execution.time_ms,
        "isBuyer": execution.is_buyer,
        "isMaker": execution.is_maker,
        "isBestMatch": True,
    }


def execution_report(report: Report, event_ms: int) -> dict[str, Any]:
    """The user-data event for one step of an order."""
    order, fill = report.order, report.fill
    is_cancel = report.kind == "CANCELED"
    body: dict[str, Any] = {
        "e": "executionReport",
        "E": event_ms,
        "s": order.symbol,
        "c": report.client_id if is_cancel else order.client_id,
        "S": order.side,
        "o": order.type,
        "f": order.time_in_force,
        "q": decimal_text(order.quantity),
        "p": decimal_text(order.price),
        "P": _ZERO,
        "F": _ZERO,
        "g": -1,
        "C": order.client_id if is_cancel else "",
        "x": report.kind,
        "X": order.status,
        "r": "NONE",
        "i": order.id,
        "l": _ZERO,
        "z": decimal_text(order.executed),
        "L": _ZERO,
        "n": "0",
        "N": None,
        "T": order.updated_ms,
        "t": -1,
        "I": order.id,
        "w": order.is_open,
        "m": False,
        "M": False,
        "O": order.time_ms,
        "Z": decimal_text(order.executed_quote),
        "Y": _ZERO,
        "Q": decimal_text(order.quote_quantity),
        "W": order.time_ms,
        "V": "NONE",
    }
    if fill is not None:
        body |= {
            "l": decimal_text(fill.quantity),
            "L": decimal_text(fill.price),
            "n": decimal_text(fill.fee),
            "N": order.gets,
            "t": fill.trade_id,
            "m": fill.maker,
            "M": True,
            "Y": decimal_text(fill.price * fill.quantity),
        }
    return body


def account_position(account: Account, assets: Iterable[str], now_ms: int) -> dict[str, Any]:
    """The user-data event for changed balances."""
    return {
        "e": "outboundAccountPosition",
        "E": now_ms,
        "u": account.updated_ms,
        "B": [
            {
                "a": asset,
                "f": decimal_text(account.balance(asset).free),
                "l": decimal_text(account.balance(asset).locked),
            }
            for asset in sorted(assets)
        ],
    }


def account_status(
    account: Account, maker: Decimal, taker: Decimal, uid: int, omit_zero: bool
) -> dict[str, Any]:
    """The `account` answer."""
    balances = [
        {"asset": asset, "free": decimal_text(held.free), "locked": decimal_text(held.locked)}
        for asset, held in sorted(account.balances.items())
        if not omit_zero or held.free or held.locked
    ]
    basis_points = Decimal(10_000)
    return {
        "makerCommission": int(maker * basis_points),
        "takerCommission": int(taker * basis_points),
        "buyerCommission": 0,
        "sellerCommission": 0,
        "commissionRates": {
            "maker": decimal_text(maker),
            "taker": decimal_text(taker),
            "buyer": _ZERO,
            "seller": _ZERO,
        },
        "canTrade": True,
        "canWithdraw": False,
        "canDeposit": True,
        "brokered": False,
        "requireSelfTradePrevention": False,
        "preventSor": False,
        "updateTime": account.updated_ms,
        "accountType": "SPOT",
        "balances": balances,
        "permissions": ["SPOT"],
        "uid": uid,
    }


def commission(symbol: str, maker: Decimal, taker: Decimal) -> dict[str, Any]:
    """The `account/commission` answer."""
    none = {"maker": _ZERO, "taker": _ZERO, "buyer": _ZERO, "seller": _ZERO}
    return {
        "symbol": symbol,
        "standardCommission": none | {"maker": decimal_text(maker), "taker": decimal_text(taker)},
        "specialCommission": none,
        "taxCommission": none,
        "discount": {
            "enabledForAccount": False,
            "enabledForSymbol": False,
            "discountAsset": "BNB",
            "discount": _ZERO,
        },
    }


def symbol_info(instrument: Instrument) -> dict[str, Any]:
    """One symbol of `exchangeInfo`."""
    up, down = text(instrument.percent_up), text(instrument.percent_down)
    return {
        "symbol": instrument.symbol,
        "status": "TRADING",
        "baseAsset": instrument.base,
        "baseAssetPrecision": SCALE,
        "quoteAsset": instrument.quote,
        "quotePrecision": SCALE,
        "quoteAssetPrecision": SCALE,
        "baseCommissionPrecision": SCALE,
        "quoteCommissionPrecision": SCALE,
        "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"],
        "icebergAllowed": False,
        "ocoAllowed": False,
        "otoAllowed": False,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": False,
        "cancelReplaceAllowed": False,
        "amendAllowed": False,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": decimal_text(instrument.tick),
                "maxPrice": decimal_text(instrument.price_max),
                "tickSize": decimal_text(instrument.tick),
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": decimal_text(instrument.step),
                "maxQty": decimal_text(instrument.quantity_max),
                "stepSize": decimal_text(instrument.step),
            },
            {
                "filterType": "MARKET_LOT_SIZE",
                "minQty": _ZERO,
                "maxQty": decimal_text(instrument.market_quantity_max),
                "stepSize": _ZERO,
            },
            {
                "filterType": "PERCENT_PRICE_BY_SIDE",
                "bidMultiplierUp": up,
                "bidMultiplierDown": down,
                "askMultiplierUp": up,
                "askMultiplierDown": down,
                "avgPriceMins": 5,
            },
            {
                "filterType": "NOTIONAL",
                "minNotional": decimal_text(instrument.notional_min),
                "applyMinToMarket": True,
                "maxNotional": decimal_text(instrument.notional_max),
                "applyMaxToMarket": True,
                "avgPriceMins": 5,
            },
            {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": instrument.orders_max},
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "NONE",
        "allowedSelfTradePreventionModes": ["NONE"],
    }


def depth(
    last_id: int, bids: Iterable[tuple[Decimal, Decimal]], asks: Iterable[tuple[Decimal, Decimal]]
) -> dict[str, Any]:
    """The `depth` answer."""
    return {
        "lastUpdateId": last_id,
        "bids": [(decimal_text(price), decimal_text(quantity)) for price, quantity in bids],
        "asks": [(decimal_text(price), decimal_text(quantity)) for price, quantity in asks],
    }
