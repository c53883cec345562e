"""Binance Spot's wire: signing, requests and private answers, as pure translation.

Entry points: `HmacSigner`, `Ed25519Signer`, `api_request`, `rest_query`, `place_params`,
`cancel_params`, `order_report`, `execution_report`, `own_trade`, `instruments`, `used_counts`.
Public market messages are in `market_wire`, error answers in `outcome`.

Invariants:

1. Amounts cross as decimal strings, in both directions; nothing is rounded. A fill whose quote
   amount the venue does not state and that does not fit the quote asset's scale is left out, and
   then fetched from the venue's own trade list.
2. A report's `client_id` is the id its order was *placed* under, also when the event is about a
   cancel (`C` or `origClientOrderId` win).
3. Cancels carry the id `cancel_id(client_id)`. Binance renames a cancelled order to its cancel's
   id, so an id of that form still tells which order it was: `placed_id`.

Source: Binance Spot API documentation, "WebSocket API" and "User data streams".
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tbot.core.clock import from_ms
from tbot.core.money import parse, scale_of, text
from tbot.venues.base import (
    BalanceReport,
    Instrument,
    OrderReport,
    OrderType,
    Placement,
    Side,
    VenueFill,
    VenueStatus,
)

type Json = Mapping[str, Any]

_STATUS: Final = {
    "NEW": VenueStatus.NEW,
    "PENDING_NEW": VenueStatus.NEW,
    "PENDING_CANCEL": VenueStatus.NEW,
    "PARTIALLY_FILLED": VenueStatus.PARTIALLY_FILLED,
    "FILLED": VenueStatus.FILLED,
    "CANCELED": VenueStatus.CANCELED,
    "REJECTED": VenueStatus.REJECTED,
    "EXPIRED": VenueStatus.EXPIRED,
    "EXPIRED_IN_MATCH": VenueStatus.EXPIRED,
}
_ORDER_ID_PREFIX: Final = "tb"
_CANCEL_PREFIX: Final = "tc"
_encode = msgspec.json.Encoder().encode


class Signer(Protocol):
    """Signs a request's parameters with the account's key."""

    api_key: str

    def sign(self, payload: str) -> str:
        """The signature of the raw payload, as Binance expects it in `signature`."""


class HmacSigner:
    """HMAC-SHA256 with a shared secret."""

    __slots__ = ("_secret", "api_key")

    def __init__(self, api_key: str, secret: str) -> None:
        self.api_key = api_key
        self._secret = secret.encode()

    def sign(self, payload: str) -> str:
        """Lower-case hex of the payload's HMAC."""
        return hmac.digest(self._secret, payload.encode(), "sha256").hex()


class Ed25519Signer:
    """Ed25519 with a private key in PEM (PKCS #8)."""

    __slots__ = ("_key", "api_key")

    def __init__(self, api_key: str, key: Ed25519PrivateKey) -> None:
        self.api_key = api_key
        self._key = key

    def sign(self, payload: str) -> str:
        """Base64 of the payload's signature."""
        return base64.b64encode(self._key.sign(payload.encode())).decode()


def rest_query(
    params: Mapping[str, str | int], signer: Signer | None, timestamp_ms: int, window_ms: int
) -> str:
    """The query string of a REST call, signed over exactly these bytes when `signer` is given."""
    if signer is None:
        return urlencode(params)
    query = urlencode({**params, "recvWindow": window_ms, "timestamp": timestamp_ms})
    return f"{query}&signature={quote(signer.sign(query), safe='')}"


def api_request(
    request_id: int,
    method: str,
    params: Mapping[str, str | int],
    signer: Signer | None,
    timestamp_ms: int = 0,
    window_ms: int = 0,
) -> bytes:
    """One WebSocket API frame; signed over the sorted, unencoded parameters with a `signer`."""
    if signer is None:
        return _encode({"id": request_id, "method": method, "params": params})
    signed: dict[str, str | int] = {
        **params,
        "apiKey": signer.api_key,
        "recvWindow": window_ms,
        "timestamp": timestamp_ms,
    }
    payload = "&".join(f"{key}={signed[key]}" for key in sorted(signed))
    signed["signature"] = signer.sign(payload)
    return _encode({"id": request_id, "method": method, "params": signed})


def cancel_id(client_id: str) -> str:
    """The id under which the order `client_id` is cancelled."""
    return _CANCEL_PREFIX + client_id.removeprefix(_ORDER_ID_PREFIX)


def placed_id(client_id: str) -> str:
    """The id an order was placed under, whether or not a cancel of ours renamed it."""
    if client_id.startswith(_CANCEL_PREFIX) and len(client_id) == 28:
        return _ORDER_ID_PREFIX + client_id[len(_CANCEL_PREFIX) :]
    return client_id


def place_params(placement: Placement) -> dict[str, str | int]:
    """Parameters of `order.place`.

    Self-trade prevention is switched off by name: one venue account carries many of our
    customers, and the venue would expire one's order because it met another's.
    """
    params: dict[str, str | int] = {
        "symbol": placement.instrument.venue_symbol,
        "side": "BUY" if placement.side is Side.BUY else "SELL",
        "newClientOrderId": placement.client_id,
        "newOrderRespType": "FULL",
        "selfTradePreventionMode": "NONE",
    }
    if placement.quantity is not None:
        params["quantity"] = text(placement.quantity)
    elif placement.quote_amount is not None:
        params["quoteOrderQty"] = text(placement.quote_amount)
    if placement.type is OrderType.MARKET:
        params["type"] = "MARKET"
        return params
    if placement.price is None:
        raise ValueError("a limit order needs a price")
    params["price"] = text(placement.price)
    if placement.post_only:
        params["type"] = "LIMIT_MAKER"
    else:
        params["type"] = "LIMIT"
        params["timeInForce"] = placement.time_in_force.value.upper()
    return params


def cancel_params(client_id: str, instrument: Instrument) -> dict[str, str | int]:
    """Parameters of `order.cancel`."""
    return {
        "symbol": instrument.venue_symbol,
        "origClientOrderId": client_id,
        "newClientOrderId": cancel_id(client_id),
    }


def order_report(
    order: Json, client_id: str | None = None, instrument: Instrument | None = None
) -> OrderReport:
    """A report from any answer that describes one order (placement, cancel, status, lists).

    Args:
        order: The JSON object.
        client_id: The id that was asked for, where one was; else the answer's own.
        instrument: Needed to take over a placement's `fills`.

    Raises:
        KeyError, InvalidAmount, ValueError: It is no such object; the answer is then unreadable.
    """
    own_id = order.get("origClientOrderId") or order["clientOrderId"]
    at_ms = order.get("updateTime") or order.get("transactTime") or order.get("time") or 0
    fills: list[VenueFill] = []
    if instrument is not None:
        for fill in order.get("fills", ()):
            parsed = _placement_fill(fill, int(at_ms), instrument)
            if parsed is not None:
                fills.append(parsed)
    reason = "" if order["status"] != "EXPIRED_IN_MATCH" else "self_trade_prevention"
    return OrderReport(
        client_id=client_id or placed_id(own_id),
        venue_symbol=order["symbol"],
        venue_order_id=str(order["orderId"]),
        status=_STATUS[order["status"]],
        executed_quantity=parse(order["executedQty"]),
        executed_quote=parse(order["cummulativeQuoteQty"]),
        updated_at=from_ms(int(at_ms)),
        fills=tuple(fills),
        reason=reason,
    )


def _placement_fill(fill: Json, at_ms: int, instrument: Instrument) -> VenueFill | None:
    """A fill of a placement's FULL answer: it took liquidity, and its quote amount is implied."""
    price, quantity = parse(fill["price"]), parse(fill["qty"])
    quote_quantity = price * quantity
    if scale_of(quote_quantity) > instrument.quote_scale:
        return None
    return VenueFill(
        trade_id=str(fill["tradeId"]),
        price=price,
        quantity=quantity,
        quote_quantity=quote_quantity,
        fee=parse(fill["commission"]),
        fee_asset=fill["commissionAsset"],
        maker=False,
        at=from_ms(at_ms),
    )


def execution_report(event: Json) -> OrderReport:
    """A report from an `executionReport` event; a trade carries its one fill."""
    original = event.get("C") or ""
    own_id = original if original not in ("", "null") else event["c"]
    fills: tuple[VenueFill, ...] = ()
    if event["x"] == "TRADE":
        fills = (
            VenueFill(
                trade_id=str(event["t"]),
                price=parse(event["L"]),
                quantity=parse(event["l"]),
                quote_quantity=parse(event["Y"]),
                fee=parse(event["n"] or "0"),
                fee_asset=event["N"] or "",
                maker=event["m"],
                at=from_ms(event["T"]),
            ),
        )
    reason = event.get("r") or "NONE"
    return OrderReport(
        client_id=placed_id(own_id),
        venue_symbol=event["s"],
        venue_order_id=str(event["i"]),
        status=_STATUS[event["X"]],
        executed_quantity=parse(event["z"]),
        executed_quote=parse(event["Z"]),
        updated_at=from_ms(event["T"]),
        fills=fills,
        reason="" if reason == "NONE" else str(reason).lower(),
    )


def account_position(event: Json) -> BalanceReport:
    """Balances after a change, from `outboundAccountPosition`."""
    return BalanceReport(
        balances={item["a"]: (parse(item["f"]), parse(item["l"])) for item in event["B"]},
        updated_at=from_ms(event["u"]),
    )


def balances(account: Json) -> dict[str, tuple[Decimal, Decimal]]:
    """Asset → (free, locked) of an account answer; assets that are zero are left out."""
    found = {
        item["asset"]: (parse(item["free"]), parse(item["locked"])) for item in account["balances"]
    }
    return {asset: both for asset, both in found.items() if any(both)}


def own_trade(trade: Json) -> VenueFill:
    """One entry of `myTrades`."""
    return VenueFill(
        trade_id=str(trade["id"]),
        price=parse(trade["price"]),
        quantity=parse(trade["qty"]),
        quote_quantity=parse(trade["quoteQty"]),
        fee=parse(trade["commission"]),
        fee_asset=trade["commissionAsset"],
        maker=trade["isMaker"],
        at=from_ms(trade["time"]),
    )


def instruments(info: Json, venue: str) -> list[Instrument]:
    """Every spot market of `exchangeInfo` that takes limit orders."""
    return [
        _instrument(symbol, venue)
        for symbol in info["symbols"]
        if symbol.get("isSpotTradingAllowed", True)
        and "LIMIT" in symbol.get("orderTypes", ("LIMIT",))
    ]


def _instrument(symbol: Json, venue: str) -> Instrument:
    filters = {item["filterType"]: item for item in symbol["filters"]}
    price = filters.get("PRICE_FILTER", {})
    lot = filters["LOT_SIZE"]
    market_lot = filters.get("MARKET_LOT_SIZE", lot)
    notional = filters.get("NOTIONAL", filters.get("MIN_NOTIONAL", {}))
    step = parse(lot["stepSize"])
    return Instrument(
        venue=venue,
        symbol=f"{symbol['baseAsset']}-{symbol['quoteAsset']}",
        venue_symbol=symbol["symbol"],
        base=symbol["baseAsset"],
        quote=symbol["quoteAsset"],
        base_scale=symbol["baseAssetPrecision"],
        quote_scale=symbol.get("quoteAssetPrecision", symbol.get("quotePrecision")),
        tick=parse(price.get("tickSize", "0")),
        price_min=parse(price.get("minPrice", "0")),
        price_max=parse(price.get("maxPrice", "0")),
        step=step,
        quantity_min=parse(lot["minQty"]),
        quantity_max=parse(lot["maxQty"]),
        # A step of zero switches the market rule off; the lot rule holds for every order.
        market_step=parse(market_lot["stepSize"]) or step,
        market_quantity_max=parse(market_lot["maxQty"]) or parse(lot["maxQty"]),
        notional_min=parse(notional.get("minNotional", "0")),
        notional_max=parse(notional["maxNotional"]) if "maxNotional" in notional else None,
        trading=symbol["status"] == "TRADING",
    )


_INTERVALS: Final = {
    "SECOND": ("s", 1),
    "MINUTE": ("m", 60),
    "HOUR": ("h", 3600),
    "DAY": ("d", 86400),
}
_LIMIT_NAMES: Final = {"REQUEST_WEIGHT": "weight", "ORDERS": "orders", "RAW_REQUESTS": "raw"}


def rate_limits(limits: Sequence[Json]) -> dict[str, tuple[int, float, int | None]]:
    """Buckets of a `rateLimits` list: name such as `orders:10s` → (limit, window_s, count)."""
    found: dict[str, tuple[int, float, int | None]] = {}
    for item in limits:
        letter, unit_s = _INTERVALS[item["interval"]]
        kind = _LIMIT_NAMES.get(item["rateLimitType"])
        if kind is not None:
            number = item["intervalNum"]
            found[f"{kind}:{number}{letter}"] = (item["limit"], unit_s * number, item.get("count"))
    return found


def used_counts(headers: Mapping[str, str]) -> dict[str, int]:
    """What the REST headers say was used: bucket name → count."""
    found: dict[str, int] = {}
    for name, value in headers.items():
        lowered = name.lower()
        for prefix, kind in (("x-mbx-used-weight-", "weight"), ("x-mbx-order-count-", "orders")):
            if lowered.startswith(prefix) and value.isdecimal():
                found[f"{kind}:{lowered.removeprefix(prefix)}"] = int(value)
    return found
