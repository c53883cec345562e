"""A replay is the recording: every message, in order, and the same book at every update."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

D = Decimal
SYMBOLS = ("BTCUSDT", "ETHUSDT")
KINDS = ("depth@100ms", "bookTicker", "trade")
STREAMS = [f"{symbol.lower()}@{kind}" for symbol in SYMBOLS for kind in KINDS]


@pytest.fixture(scope="module")
def recordings(shared_dir: Path) -> list[Path]:
    """The recorded spot files of both symbols."""
    files = sorted((shared_dir / "market-data" / "l2").glob("binance-spot_*.raw.gz"))
    if len(files) < 4:
        pytest.skip(f"no spot recordings under {shared_dir}/market-data/l2")
    return files


def lines(files: list[Path]) -> Iterator[tuple[int, str, str]]:
    """(receive time, symbol, JSON) of every line, per file."""
    for path in files:
        symbol = path.name.split("_")[1]
        with gzip.open(path, "rt") as file:
            for text in file:
                at_ns, _, body = text.rstrip("\n").partition(" ")
                yield int(at_ns), symbol, body


class Reference:
    """A plain rebuild of a book, written without a line of the exchange's code."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        self.last_id = snapshot["lastUpdateId"]
        self.sides = {"b": dict(snapshot["bids"]), "a": dict(snapshot["asks"])}

    def apply(self, diff: dict[str, Any]) -> bool:
        """Apply a diff; False when it is older than the book."""
        if diff["u"] <= self.last_id:
            return False
        assert diff["U"] <= self.last_id + 1, "a gap"
        self.last_id = diff["u"]
        for key, levels in self.sides.items():
            for price, quantity in diff[key]:
                if float(quantity):
                    levels[price] = quantity
                else:
                    levels.pop(price, None)
        return True

    def top(self, key: str, count: int) -> list[list[str]]:
        levels = sorted(self.sides[key].items(), key=lambda x: D(x[0]), reverse=key == "b")
        return [list(level) for level in levels[:count]]


async def test_every_recorded_message_once_and_in_order_and_the_same_book(
    new_exchange: Callable[..., Any], recordings: list[Path]
) -> None:
    recorded: dict[str, list[str]] = defaultdict(list)
    references: dict[str, Reference] = {}
    for _, symbol, body in lines(recordings):
        if body.startswith('{"stream"'):
            name, data = body[11 : body.index('"', 11)], body[body.index('"data":') + 7 : -1]
            recorded[name].append(data)
        elif symbol not in references:
            references[symbol] = Reference(json.loads(body))
    waits = itertools.chain.from_iterable(("--wait-for", name) for name in STREAMS)
    files = itertools.chain.from_iterable(("--replay", str(path)) for path in recordings)
    exchange = new_exchange(*files, "--speed", "0", *waits).start()
    client = exchange.client
    received: dict[str, list[str]] = defaultdict(list)
    books: dict[str, Reference] = {}
    async with client.streams("/stream?streams=" + "/".join(STREAMS[:-1])) as stream:
        for symbol in SYMBOLS:
            books[symbol] = Reference(client.get("/api/v3/depth", symbol=symbol, limit=5000).json())
        assert not client.get("/paper/v1/session").json()["started"]
        await stream.send(json.dumps({"method": "SUBSCRIBE", "params": STREAMS[-1:], "id": 1}))
        assert json.loads(await stream.recv()) == {"result": None, "id": 1}
        wanted = sum(len(recorded[name]) for name in STREAMS)
        for _ in range(wanted):
            text = await asyncio.wait_for(stream.recv(decode=True), 30)
            name = text[11 : text.index('"', 11)]
            data = text[text.index('"data":') + 7 : -1]
            received[name].append(data)
            assert data == recorded[name][len(received[name]) - 1]
            if "@depth" in name:
                diff = json.loads(data)
                ours, theirs = books[diff["s"]], references[diff["s"]]
                assert ours.apply(diff) == theirs.apply(diff)
                assert ours.sides == theirs.sides
    assert {name: len(found) for name, found in received.items()} == {
        name: len(recorded[name]) for name in STREAMS
    }
    session = client.get("/paper/v1/session").json()
    assert session["finished"] and session["position"] == wanted + len(SYMBOLS)
    check_held_state(client, references, recorded)


def check_held_state(
    client: Any, references: dict[str, Reference], recorded: dict[str, list[str]]
) -> None:
    """After the end the last state stands, and orders trade against it."""
    for symbol, reference in references.items():
        book = client.get("/api/v3/depth", symbol=symbol, limit=500).json()
        assert book["bids"] == reference.top("b", 500)
        assert book["asks"] == reference.top("a", 500)
        assert book["lastUpdateId"] == reference.last_id
        best = json.loads(recorded[f"{symbol.lower()}@bookTicker"][-1])
        shown = client.get("/api/v3/ticker/bookTicker", symbol=symbol).json()
        assert (shown["bidPrice"], shown["askPrice"]) == (best["b"], best["a"])
    trades = client.get("/api/v3/trades", symbol="BTCUSDT", limit=1000).json()
    expected = [json.loads(data) for data in recorded["btcusdt@trade"][-1000:]]
    assert [(t["id"], t["price"], t["qty"], t["time"]) for t in trades] == [
        (t["t"], t["p"], t["q"], t["T"]) for t in expected
    ]
    client.deposit("USDT", "10000000")
    best = json.loads(recorded["btcusdt@bookTicker"][-1])
    behind = [level for level in references["BTCUSDT"].top("a", 500) if D(level[0]) > D(best["a"])]
    ladder = [[best["a"], best["A"]], *behind]
    bought = client.call(
        "POST", "/api/v3/order", symbol="BTCUSDT", side="BUY", type="MARKET",
        quantity=str(D(best["A"]) + D(behind[0][1]) + D(behind[1][1])),
    ).json()  # fmt: skip
    assert [[f["price"], f["qty"]] for f in bought["fills"]] == ladder[:3]


async def test_a_late_client_rebuilds_the_same_book_and_a_restart_goes_on(
    new_exchange: Callable[..., Any], recordings: list[Path]
) -> None:
    files = itertools.chain.from_iterable(
        ("--replay", str(path)) for path in recordings if "ETH" in path.name
    )
    exchange = new_exchange(*files, "--speed", "20").start()
    client = exchange.client
    while client.get("/paper/v1/session").json()["position"] < 500:
        await asyncio.sleep(0.01)
    buffered: list[dict[str, Any]] = []
    async with client.streams("/ws/ethusdt@depth@100ms") as stream:
        buffered.append(json.loads(await stream.recv()))
        book = Reference(client.get("/api/v3/depth", symbol="ETHUSDT", limit=5000).json())
        while book.last_id < buffered[0]["U"]:
            book = Reference(client.get("/api/v3/depth", symbol="ETHUSDT", limit=5000).json())
        for diff in buffered:
            book.apply(diff)
        for _ in range(100):
            book.apply(json.loads(await stream.recv()))
        reached = client.get("/paper/v1/session").json()["position"]
    client.deposit("USDT", "1000")
    exchange.kill()
    exchange.start()
    again = exchange.client.get("/paper/v1/session").json()["position"]
    assert again >= reached, "the deposit's record says how far the market was"
    reference = None
    for _, _, body in lines([path for path in recordings if "ETH" in path.name]):
        if body.startswith('{"stream"'):
            diff = json.loads(body)["data"]
            if reference is None or diff.get("e") != "depthUpdate":
                continue
            reference.apply(diff)
            if reference.last_id == book.last_id:
                assert reference.sides == book.sides
                return
        elif reference is None:
            reference = Reference(json.loads(body))
    pytest.fail("the client's book is at no update of the recording")


async def test_users_amid_a_replay_leave_the_recording_whole(
    new_exchange: Callable[..., Any], recordings: list[Path]
) -> None:
    files = [path for path in recordings if "ETH" in path.name]
    options = itertools.chain.from_iterable(("--replay", str(path)) for path in files)
    exchange = new_exchange(
        *options, "--speed", "8", "--wait-for", "ethusdt@depth@100ms",
        TBOT_EXCHANGE__WEIGHT_1M_MAX="10000000",
    ).start()  # fmt: skip
    client = exchange.client
    client.deposit("USDT", "1000000")
    client.deposit("ETH", "500")
    first = client.get("/api/v3/depth", symbol="ETHUSDT", limit=5000).json()
    book, trades = Reference(first), list[dict[str, Any]]()
    recorded = [
        json.loads(body)["data"]
        for _, _, body in lines(files)
        if body.startswith('{"stream":"ethusdt@trade"')
    ]
    names = "ethusdt@trade/ethusdt@bookTicker/ethusdt@depth@100ms"
    async with client.streams(f"/stream?streams={names}") as stream, client.socket() as ws:
        trader = asyncio.create_task(trade_at_random(client, ws, 250))
        snapshot: dict[str, Any] | None = None
        compared = 0
        while not trader.done() or snapshot is not None or compared < 10:
            frame = json.loads(await asyncio.wait_for(stream.recv(), 30))
            data = frame["data"]
            if frame["stream"].endswith("@trade"):
                trades.append(data)
            elif frame["stream"].endswith("@bookTicker"):
                assert D(data["b"]) < D(data["a"])
            else:
                assert data["U"] == book.last_id + 1 or data["U"] <= first["lastUpdateId"]
                book.apply(data)
                if snapshot is None:
                    snapshot = client.get("/api/v3/depth", symbol="ETHUSDT", limit=5000).json()
                if book.last_id == snapshot["lastUpdateId"]:
                    assert book.top("b", 5000) == snapshot["bids"]
                    assert book.top("a", 5000) == snapshot["asks"]
                    snapshot, compared = None, compared + 1
        await trader
    assert [trade["t"] for trade in trades] == list(
        range(recorded[0]["t"], recorded[0]["t"] + len(trades))
    )
    own = theirs = 0
    for trade in trades:
        if trade == recorded[theirs] | {"t": recorded[theirs]["t"] + own}:
            theirs += 1
        else:
            own += 1
    assert theirs > 100
    assert own > 10
    assert [t["T"] for t in trades] == sorted(t["T"] for t in trades)


async def trade_at_random(client: Any, ws: Any, count: int) -> None:
    """Place, take and cancel near the top of the book, the same way every time."""
    for number in range(count):
        best = client.get("/api/v3/ticker/bookTicker", symbol="ETHUSDT").json()
        side = ("BUY", "SELL")[number % 2]
        price = D(best["bidPrice" if side == "BUY" else "askPrice"])
        price += (number % 7 - 3) * D("0.05")
        fields = {"symbol": "ETHUSDT", "side": side, "newClientOrderId": f"amid-{number}"}
        if number % 5 == 0:
            fields |= {"type": "MARKET", "quantity": "0.5"}
        else:
            fields |= {
                "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.8", "price": str(price),
            }  # fmt: skip
        answer = await ws.call("order.place", **fields)
        assert answer["status"] == 200, answer
        if number % 3 == 0:
            await ws.call("order.cancel", symbol="ETHUSDT", origClientOrderId=f"amid-{number}")
