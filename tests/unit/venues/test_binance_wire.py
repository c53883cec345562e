"""Binance's wire: signatures by its documentation's examples, requests, and recorded answers."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tbot.core.ids import new_id, venue_client_id
from tbot.venues.base import (
    BestPrices,
    DepthDiff,
    Instrument,
    MarketTrade,
    OrderType,
    Placement,
    Side,
    TimeInForce,
    VenueStatus,
)
from tbot.venues.binance import market_wire, wire

INSTRUMENT = Instrument(
    venue="paper",
    symbol="BTC-USDT",
    venue_symbol="BTCUSDT",
    base="BTC",
    quote="USDT",
    base_scale=8,
    quote_scale=8,
    tick=Decimal("0.01"),
    price_min=Decimal("0.01"),
    price_max=Decimal(1000000),
    step=Decimal("0.00001"),
    quantity_min=Decimal("0.00001"),
    quantity_max=Decimal(9000),
    market_step=Decimal("0.00001"),
    market_quantity_max=Decimal(100),
    notional_min=Decimal(5),
    notional_max=None,
    trading=True,
)


def placement(**changes: Any) -> Placement:
    values: dict[str, Any] = {
        "client_id": venue_client_id(new_id()),
        "instrument": INSTRUMENT,
        "side": Side.BUY,
        "type": OrderType.LIMIT,
        "time_in_force": TimeInForce.GTC,
        "quantity": Decimal("0.0100"),
        "quote_amount": None,
        "price": Decimal("52000.00"),
    }
    return Placement(**(values | changes))


def test_hmac_signature_is_the_documented_one() -> None:
    # The example of Binance's "WebSocket API general information", SIGNED request, HMAC.
    signer = wire.HmacSigner(
        "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A",
        "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j",
    )
    frame = wire.api_request(
        1,
        "order.place",
        {
            "symbol": "BTCUSDT",
            "side": "SELL",
            "type": "LIMIT",
            "timeInForce": "GTC",
            "quantity": "0.01000000",
            "price": "52000.00",
            "newOrderRespType": "ACK",
        },
        signer,
        1645423376532,
        100,
    )
    expected = "cc15477742bd704c29492d96c7ead9414dfd8e0ec4a00f947bb5bb454ddbd08a"
    assert json.loads(frame)["params"]["signature"] == expected


def test_ed25519_signature_verifies() -> None:
    key = Ed25519PrivateKey.generate()
    signer = wire.Ed25519Signer("key", key)
    query = wire.rest_query({"symbol": "BTCUSDT"}, signer, 1_700_000_000_000, 3000)
    signed, _, signature = query.rpartition("&signature=")
    raw = base64.b64decode(signature.replace("%2B", "+").replace("%2F", "/").replace("%3D", "="))
    key.public_key().verify(raw, signed.encode())


@pytest.mark.parametrize(
    ("changes", "expected", "absent"),
    [
        (
            {},
            {"type": "LIMIT", "timeInForce": "GTC", "quantity": "0.01", "price": "52000"},
            {"quoteOrderQty"},
        ),
        ({"post_only": True}, {"type": "LIMIT_MAKER", "price": "52000"}, {"timeInForce"}),
        (
            {"type": OrderType.MARKET, "price": None, "side": Side.SELL},
            {"type": "MARKET", "side": "SELL", "quantity": "0.01"},
            {"price", "timeInForce", "quoteOrderQty"},
        ),
        (
            {
                "type": OrderType.MARKET,
                "price": None,
                "quantity": None,
                "quote_amount": Decimal("100.50"),
            },
            {"type": "MARKET", "quoteOrderQty": "100.5"},
            {"quantity", "price"},
        ),
        ({"time_in_force": TimeInForce.FOK}, {"timeInForce": "FOK"}, set()),
    ],
)
def test_placements_become_the_venues_parameters(
    changes: dict[str, Any], expected: dict[str, str], absent: set[str]
) -> None:
    params = wire.place_params(placement(**changes))
    assert expected.items() <= params.items()
    assert absent.isdisjoint(params)
    # One venue account carries many customers: the venue must not protect one from another.
    assert params["selfTradePreventionMode"] == "NONE"
    assert params["newOrderRespType"] == "FULL"


def test_a_cancels_id_tells_the_order() -> None:
    client_id = venue_client_id(new_id())
    assert wire.cancel_id(client_id) != client_id
    assert len(wire.cancel_id(client_id)) <= 32
    assert wire.placed_id(wire.cancel_id(client_id)) == client_id
    assert wire.placed_id(client_id) == client_id
    assert wire.placed_id("tcshort") == "tcshort"


def answer(**changes: Any) -> dict[str, Any]:
    return {
        "symbol": "BTCUSDT",
        "orderId": 28,
        "orderListId": -1,
        "clientOrderId": "tbX",
        "transactTime": 1507725176595,
        "price": "0.00000000",
        "origQty": "3.00000000",
        "executedQty": "3.00000000",
        "cummulativeQuoteQty": "12000.00000000",
        "status": "FILLED",
        "timeInForce": "GTC",
        "type": "MARKET",
        "side": "SELL",
        "fills": [
            {
                "price": "4000.00000000",
                "qty": "3.00000000",
                "commission": "4.00000000",
                "commissionAsset": "USDT",
                "tradeId": 56,
            }
        ],
    } | changes


def test_a_full_answer_carries_its_fills() -> None:
    report = wire.order_report(answer(), "tbOurs", INSTRUMENT)
    assert report.client_id == "tbOurs"
    assert (report.status, report.executed_quantity) == (VenueStatus.FILLED, Decimal(3))
    (fill,) = report.fills
    assert (fill.trade_id, fill.quote_quantity, fill.maker) == ("56", Decimal(12000), False)
    assert fill.at == report.updated_at


def test_a_fill_whose_quote_amount_would_be_rounded_is_left_to_be_fetched() -> None:
    fills = [answer()["fills"][0] | {"price": "0.00000123", "qty": "1.23456789"}]
    report = wire.order_report(answer(fills=fills), "tbOurs", INSTRUMENT)
    assert report.fills == ()
    assert report.executed_quantity == Decimal(3)  # says that something must be fetched


def execution(**changes: Any) -> dict[str, Any]:
    return {
        "e": "executionReport",
        "E": 1499405658658,
        "s": "ETHBTC",
        "c": "tbOrder",
        "S": "BUY",
        "o": "LIMIT",
        "f": "GTC",
        "q": "1.00000000",
        "p": "0.10264410",
        "P": "0.00000000",
        "F": "0.00000000",
        "g": -1,
        "C": "",
        "x": "NEW",
        "X": "NEW",
        "r": "NONE",
        "i": 4293153,
        "l": "0.00000000",
        "z": "0.00000000",
        "L": "0.00000000",
        "n": "0",
        "N": None,
        "T": 1499405658657,
        "t": -1,
        "I": 8641984,
        "w": True,
        "m": False,
        "M": False,
        "O": 1499405658657,
        "Z": "0.00000000",
        "Y": "0.00000000",
        "Q": "0.00000000",
        **changes,
    }


def test_execution_reports() -> None:
    report = wire.execution_report(execution())
    assert (report.client_id, report.status, report.fills) == ("tbOrder", VenueStatus.NEW, ())
    traded = wire.execution_report(
        execution(
            x="TRADE", X="PARTIALLY_FILLED", l="0.5", z="0.5", L="0.1", Y="0.05", Z="0.05",
            n="0.0005", N="ETH", t=77, m=True,
        )
    )  # fmt: skip
    (fill,) = traded.fills
    assert (fill.trade_id, fill.fee, fill.fee_asset, fill.maker) == (
        "77",
        Decimal("0.0005"),
        "ETH",
        True,
    )
    cancelled = wire.execution_report(execution(c="web_1", C="tbOrder", x="CANCELED", X="CANCELED"))
    assert (cancelled.client_id, cancelled.status) == ("tbOrder", VenueStatus.CANCELED)
    expired = wire.execution_report(execution(x="EXPIRED", X="EXPIRED", r="NO_LIQUIDITY"))
    assert (expired.status, expired.reason) == (VenueStatus.EXPIRED, "no_liquidity")


def test_limits_and_counts() -> None:
    limits = wire.rate_limits(
        [
            {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 6000},
            {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 50, "count": 3},
            {"rateLimitType": "CONNECTIONS", "interval": "MINUTE", "intervalNum": 5, "limit": 300},
        ]
    )  # fmt: skip
    assert limits == {"weight:1m": (6000, 60, None), "orders:10s": (50, 10, 3)}
    headers = {"X-MBX-USED-WEIGHT-1M": "17", "x-mbx-order-count-10s": "3", "Content-Type": "x"}
    assert wire.used_counts(headers) == {"weight:1m": 17, "orders:10s": 3}


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        for line in file:
            yield json.loads(line)


def test_recorded_answers_are_read(shared_dir: Path) -> None:
    """Every spot order answer of the collected vectors becomes a report, and survives a round trip."""
    reports = 0
    for fixture in lines(shared_dir / "exchange-fixtures/jkorf/binance.jsonl.gz"):
        found: list[Any] = []
        if fixture["kind"] == "rest" and fixture["path"] in (
            "/api/v3/order",
            "/api/v3/openOrders",
            "/api/v3/allOrders",
        ):
            response = fixture["response"]
            found = response if isinstance(response, list) else [response]
        elif fixture["kind"] == "ws" and fixture["source"] in (
            "Socket/Spot/Trading/PlaceOrder.txt",
            "Socket/Spot/Trading/CancelOrder.txt",
            "Socket/Spot/Trading/GetOrder.txt",
        ):
            found = [frame["json"]["result"] for frame in fixture["frames"][1:] if "json" in frame]
        for order in found:
            report = wire.order_report(order)
            assert report.venue_order_id == str(order["orderId"])
            assert report.client_id == order.get("origClientOrderId", order["clientOrderId"])
            reports += 1
        if fixture.get("path") == "/api/v3/myTrades" and fixture["kind"] == "rest":
            assert all(wire.own_trade(trade).fee >= 0 for trade in fixture["response"])
        if fixture.get("path") == "/api/v3/account" and fixture["kind"] == "rest":
            assert wire.balances(fixture["response"])["BTC"][0] > 0
    assert reports >= 6


def test_recorded_session_is_read(shared_dir: Path) -> None:
    """A whole public session: instruments, snapshots, and every stream that we subscribe to."""
    kinds: dict[str, int] = {}
    for line in lines(shared_dir / "exchange-fixtures/wire-sessions/binance.session.jsonl.gz"):
        if line["t"] == "http" and line["url"].endswith("exchangeInfo"):
            instruments = {
                each.venue_symbol: each for each in wire.instruments(json.loads(line["data"]), "x")
            }
            assert instruments["LRCBTC"].symbol == "LRC-BTC"
            assert instruments["LRCBTC"].tick == Decimal("0.00000001")
            assert instruments["NKNUSDT"].trading
        elif line["t"] == "http" and "/depth?" in line["url"]:
            snapshot = market_wire.depth_snapshot("X", json.loads(line["data"]))
            assert snapshot.bids[0].price < snapshot.asks[0].price
        elif line["t"] == "recv":
            frame = json.loads(line["data"])
            if "stream" not in frame:
                continue
            event = market_wire.market_event(frame)
            kinds[type(event).__name__] = kinds.get(type(event).__name__, 0) + 1
            if isinstance(event, DepthDiff):
                assert event.first_update_id <= event.last_update_id
            elif isinstance(event, BestPrices):
                assert event.bid < event.ask
    assert kinds["DepthDiff"] > 100
    assert kinds["BestPrices"] > 50


def test_trades_are_read() -> None:
    event = market_wire.market_event(
        {
            "stream": "btcusdt@trade",
            "data": {
                "e": "trade", "E": 1723161255343, "s": "BTCUSDT", "t": 3735683259,
                "p": "61837.63000000", "q": "0.02000000", "T": 1723161255342, "m": True,
            },
        }
    )  # fmt: skip
    assert isinstance(event, MarketTrade)
    assert (event.trade_id, event.buyer_is_maker) == (3735683259, True)
    assert market_wire.market_event({"stream": "x@kline_1m", "data": {}}) is None
