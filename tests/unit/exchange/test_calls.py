"""Signatures, ages, limits and statistics: the pure parts around the calls."""

from __future__ import annotations

import base64
import hmac
from decimal import Decimal

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tbot.exchange.hub import text_frame
from tbot.exchange.limits import Limits
from tbot.exchange.signing import ApiKey, socket_payload, split_signature, timely
from tbot.exchange.streams import names_in
from tbot.exchange.tickers import Tickers

D = Decimal


@pytest.mark.parametrize(
    ("query", "body", "payload", "signature"),
    [
        (b"a=1&b=2&signature=ff", b"", b"a=1&b=2", "ff"),
        (b"", b"a=1&signature=ff", b"a=1", "ff"),
        (b"a=1", b"b=%2F&signature=x%2By%3D", b"a=1b=%2F", "x+y="),
        (b"a=1&signature=ff", b"b=2", b"a=1b=2", "ff"),
        (b"signature=ff&a=1", b"", b"a=1", "ff"),
        (b"a=1", b"", b"a=1", None),
        (b"a_signature=1", b"", b"a_signature=1", None),
    ],
)
def test_the_signed_payload_is_the_raw_request(
    query: bytes, body: bytes, payload: bytes, signature: str | None
) -> None:
    assert split_signature(query, body) == (payload, signature)


def test_documented_hmac_example_verifies_in_either_case() -> None:
    # The worked example of the venue's public documentation.
    secret = b"NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"
    payload = (
        b"symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1"
        b"&recvWindow=5000&timestamp=1499827319559"
    )
    signature = "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71"
    key = ApiKey("k", "main", secret)
    assert key.verify(payload, signature)
    assert key.verify(payload, signature.upper())
    assert not key.verify(payload + b"0", signature)
    assert not key.verify(payload, "ü")


def test_ed25519_signatures_are_base64() -> None:
    private = Ed25519PrivateKey.generate()
    key = ApiKey("k", "main", public_key=private.public_key())
    good = base64.b64encode(private.sign(b"x")).decode()
    assert key.verify(b"x", good)
    assert not key.verify(b"y", good)
    assert not key.verify(b"x", "not base64!")
    assert not key.verify(b"x", hmac.digest(b"", b"x", "sha256").hex())


def test_socket_payload_sorts_and_does_not_encode() -> None:
    assert socket_payload({"b": "x y", "a": "1", "signature": "s"}) == b"a=1&b=x y"


def test_age_of_a_request() -> None:
    now = 1_700_000_000_000
    assert timely(str(now), None, now) is None
    assert timely(str(now - 5_000), None, now) is None
    assert timely(str(now - 5_001), None, now) == -1021
    assert timely(str(now + 999), None, now) is None
    assert timely(str(now + 1_000), None, now) == -1021
    assert timely(str(now * 1000), "1000", now) is None
    assert timely(str(now), "60001", now) == -1131
    assert timely("soon", None, now) == -1100
    assert timely(str(now), "nan", now) == -1131


def test_windows_are_aligned_and_first_fills_are_refunded() -> None:
    limits = Limits(weight_1m=100, orders_10s=5, orders_1d=50)
    window = limits.weight("1.2.3.4", 59_999)
    window.count = 100
    assert window.left_s(59_999) == 1
    assert limits.weight("1.2.3.4", 60_000).count == 0
    ten_s, day = limits.orders("main", 5_000)
    ten_s.count = day.count = 3
    limits.refund("main")
    assert [e["count"] for e in limits.order_entries("main", 5_000)] == [2, 2]
    assert [e["count"] for e in limits.order_entries("main", 10_000)] == [0, 2]


def test_frames_have_the_three_lengths() -> None:
    assert text_frame(b"hi") == b"\x81\x02hi"
    assert text_frame(b"x" * 126)[:4] == b"\x81\x7e\x00\x7e"
    assert text_frame(b"x" * 65_536)[:10] == b"\x81\x7f" + (65_536).to_bytes(8, "big")


def test_stream_urls() -> None:
    assert names_in("/ws/btcusdt@trade/btcusdt@depth@100ms", {}) == (
        ["btcusdt@trade", "btcusdt@depth@100ms"],
        False,
    )
    assert names_in("/ws/0", {}) == ([], False)
    assert names_in("/ws", {}) == ([], False)
    assert names_in("/stream", {"streams": "a1@trade/b2@kline_1m"}) == (
        ["a1@trade", "b2@kline_1m"],
        True,
    )
    assert names_in("/stream", {"streams": "x"}) is None
    assert names_in("/other", {}) is None


def test_statistics_of_trades() -> None:
    tickers = Tickers("X")
    assert tickers.figures()["count"] == 0
    minute = 60_000
    tickers.add(1, D("10"), D("1"), False, 5 * minute)
    tickers.add(2, D("12"), D("2"), True, 5 * minute + 1)
    tickers.add(3, D("9"), D("1"), False, 7 * minute)
    figures = tickers.figures()
    assert (figures["openPrice"], figures["highPrice"]) == ("10.00000000", "12.00000000")
    assert (figures["lowPrice"], figures["lastPrice"]) == ("9.00000000", "9.00000000")
    assert (figures["volume"], figures["quoteVolume"]) == ("4.00000000", "43.00000000")
    assert (figures["priceChange"], figures["priceChangePercent"]) == ("-1.00000000", "-10.000")
    assert (figures["firstId"], figures["lastId"], figures["count"]) == (1, 3, 3)
    assert tickers.average() == D("10.75")
    ones = tickers.klines("1m", 10)
    assert [k[0] // minute for k in ones] == [5, 7]
    assert ones[0][1:5] == ["10.00000000", "12.00000000", "10.00000000", "12.00000000"]
    assert ones[0][9] == "1.00000000", "bought by takers"
    fives = tickers.klines("5m", 10)
    assert len(fives) == 1 and fives[0][8] == 3
    tickers.add(4, D("20"), D("1"), False, (5 + 1440) * minute)
    assert tickers.figures()["firstId"] == 3, "older than a day is gone"
