"""Instruments and market data."""

from __future__ import annotations

from typing import Any

from tbot.web.market import BookOut, Instruments, TickerOut, Trades


async def test_instruments_with_entity_tags(site: Any, problem: Any) -> None:
    async with site.client("ann") as client:
        answer = await client.get("/v1/instruments")
        Instruments.model_validate(answer.json())
        assert [one["symbol"] for one in answer.json()["items"]] == ["BTC-USDT", "ETH-USDT"]
        tag = answer.headers["etag"]
        again = await client.get("/v1/instruments", headers={"If-None-Match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        one = (await client.get("/v1/instruments/BTC-USDT")).json()
        assert one == answer.json()["items"][0]
        assert one["tick"] == "0.01"
        for path in ("XXX-USDT", "btc-usdt", "BTC", "..", "%00", "BTC-USDT%0a"):
            problem(await client.get(f"/v1/instruments/{path}"), 404, "not_found")


async def test_ticker_book_and_trades(site: Any, problem: Any) -> None:
    async with site.client("ann") as client:
        ticker = (await client.get("/v1/instruments/BTC-USDT/ticker")).json()
        TickerOut.model_validate(ticker)
        assert (ticker["last"], ticker["bid"], ticker["ask"]) == ("99.5", "99", "100")
        assert ticker["stale"] is False
        book = (await client.get("/v1/instruments/BTC-USDT/book?depth=1")).json()
        BookOut.model_validate(book)
        assert (book["bids"], book["asks"]) == ([["99", "1"]], [["100", "1"]])
        trades = (await client.get("/v1/instruments/BTC-USDT/trades")).json()
        Trades.model_validate(trades)
        assert trades["items"] == [
            {
                "trade_id": 7,
                "price": "99.5",
                "quantity": "0.25",
                "side": "sell",
                "at": "2026-11-22T05:14:43.123456Z",
            }
        ]
        silent = (await client.get("/v1/instruments/ETH-USDT/ticker")).json()
        TickerOut.model_validate(silent)
        assert (silent["last"], silent["bid"], silent["trades"]) == (None, None, 0)
        problem(await client.get("/v1/instruments/NO-USDT/ticker"), 404, "not_found")
        problem(await client.get("/v1/instruments/BTC-USDT/book?depth=0"), 422, "validation_failed")
