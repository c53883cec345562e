"""The SDK's streams against a deliberately nasty server: drops, reorders, lies, every close code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nastyserver import BTC, Act, Nasty, Peer, Quick, forever, take, trade
from tbot.client import (
    AuthError,
    Book,
    Gap,
    Refused,
    StreamClosed,
)
from tbot.client.channels import TradesChannel


async def test_trades_resume_after_a_loss_and_repetitions_are_dropped(nasty: Nasty) -> None:
    async def first(peer: Peer) -> None:
        await peer.log_in()
        await peer.accept()
        await peer.say(op="snap", ch=7, seq=10, data={"trades": []})
        for seq in (11, 12, 12, 11):
            await peer.trade(seq)
        peer.socket.transport.abort()

    async def second(peer: Peer) -> None:
        await peer.log_in()
        wish = await peer.accept(recovered=True)
        assert wish["resume"] == {"epoch": "e1", "ch": 7, "seq": 12}
        await peer.trade(13)
        await forever(peer)

    nasty.acts = [first, second]
    gaps: list[Gap] = []
    async with nasty.client() as client, client.stream(gaps.append) as stream:
        trades = await take(stream.trades(BTC), 3)
    assert [one.trade_id for one in trades] == [11, 12, 13] and not gaps


async def test_a_dropped_trade_is_fetched_again_and_a_gap_is_told(nasty: Nasty) -> None:
    async def act(peer: Peer) -> None:
        await peer.log_in()
        await peer.accept()
        await peer.say(op="snap", ch=7, seq=0, data={"trades": []})
        await peer.trade(1)
        await peer.trade(3)  # 2 was dropped
        await peer.trade(4)
        wish = await peer.accept(recovered=True)
        assert wish["resume"]["seq"] == 1
        for seq in (2, 3, 4):
            await peer.trade(seq)
        await peer.say(**{"op": "gap", "ch": 7, "seq": 9, "from": 5, "to": 9, "why": "slow"})
        await peer.trade(10)
        await forever(peer)

    nasty.acts = [act]
    gaps: list[Gap] = []
    async with nasty.client() as client, client.stream(gaps.append) as stream:
        trades = await take(stream.trades(BTC), 5)
    assert [one.trade_id for one in trades] == [1, 2, 3, 4, 10]
    assert gaps == [Gap("trades", BTC, "slow", 5)]


async def test_after_a_restart_of_the_server_trades_are_filled_in_from_the_snapshot(
    nasty: Nasty,
) -> None:
    async def first(peer: Peer) -> None:
        await peer.log_in("run 1")
        await peer.accept()
        await peer.say(op="snap", ch=7, seq=0, data={"trades": [trade(100)]})
        await peer.trade(1, 101)
        await peer.close(4201)

    def again(recent: list[int]) -> Act:
        async def act(peer: Peer) -> None:
            await peer.log_in("run 2")
            await peer.accept(number=3, recovered=False)
            recent_trades = [trade(number) for number in recent]
            await peer.say(op="snap", ch=3, seq=0, data={"trades": recent_trades})
            await peer.trade(1, recent[-1] + 1, ch=3)
            await peer.close(4201)

        return act

    nasty.acts = [first, again([100, 101, 102, 103]), again([200, 201]), forever]
    gaps: list[Gap] = []
    async with nasty.client() as client, client.stream(gaps.append) as stream:
        trades = await take(stream.trades(BTC), 7)
    assert [one.trade_id for one in trades] == [101, 102, 103, 104, 200, 201, 202]
    assert [gap.why for gap in gaps] == ["reconnected"]


async def test_a_book_with_a_wrong_checksum_or_number_is_built_anew(nasty: Nasty) -> None:
    shadow = Book(BTC, 5)

    def delta(seq: int, prev: int, price: str, quantity: str, wrong: int = 0) -> dict[str, Any]:
        shadow.apply(seq, seq, [(price, quantity)], [])
        checksum = shadow.checksum() + wrong
        data = {"bids": [[price, quantity]], "asks": [], "checksum": checksum, "update_id": seq}
        return {"op": "delta", "ch": 7, "seq": seq, "prev": prev, "data": data}

    def snap(seq: int) -> dict[str, Any]:
        bids = [[f"{price}", f"{quantity}"] for price, quantity in shadow.bids()]
        data = {"bids": bids, "asks": [], "checksum": shadow.checksum(), "update_id": seq}
        return {"op": "snap", "ch": 7, "seq": seq, "data": data}

    async def act(peer: Peer) -> None:
        await peer.log_in()
        await peer.accept()
        await peer.say(**snap(1))
        await peer.say(**delta(2, 1, "100", "1"))
        await peer.say(**delta(3, 2, "101", "1", wrong=1))  # a lie
        await peer.accept()
        await peer.say(**delta(4, 3, "102", "1"))  # on its way before the snapshot
        await peer.say(**snap(4))
        await peer.say(**delta(6, 5, "103", "1"))  # 5 was dropped
        await peer.accept()
        await peer.say(**snap(6))
        await peer.say(**{"op": "gap", "ch": 7, "seq": 7, "from": 7, "to": 7, "why": "venue"})
        await peer.say(**snap(8))
        await peer.say(**delta(9, 8, "100", "0"))
        await forever(peer)

    nasty.acts = [act]
    seen: list[int] = []
    gaps: list[Gap] = []
    async with nasty.client() as client, client.stream(gaps.append) as stream:
        books = stream.book(BTC, depth=5, on_update=lambda book: seen.append(book.seq))
        async with asyncio.timeout(10):
            async for book in books:
                if book.seq == 9:
                    break
        assert [f"{price}" for price, _ in book.bids()] == ["103", "102", "101"]
        assert book.best_ask is None and book.spread is None
    assert seen == [1, 2, 4, 6, 8, 9]
    assert [gap.why for gap in gaps] == ["venue"]


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 1012, 4101, 4102, 4104, 4105, 4106])
async def test_after_these_codes_it_comes_back_after_a_delay(nasty: Nasty, code: int) -> None:
    async def first(peer: Peer) -> None:
        await peer.log_in()
        if code == 1006:
            peer.socket.transport.abort()
        else:
            await peer.close(code)

    async def second(peer: Peer) -> None:
        await peer.log_in()
        await peer.accept()
        await peer.say(op="snap", ch=7, seq=1, data={"bid": "5", "ask": None})
        await forever(peer)

    nasty.acts = [first, second]
    before = Quick.waits
    async with nasty.client() as client, client.stream() as stream:
        (best,) = await take(stream.best_prices(BTC), 1)
    assert str(best.bid) == "5" and best.ask is None
    assert Quick.waits > before and nasty.connections == 2


@pytest.mark.parametrize("code", [4201, 4202])
async def test_after_these_codes_it_comes_back_at_once_but_not_for_ever(
    nasty: Nasty, code: int
) -> None:
    async def sends_away(peer: Peer) -> None:
        await peer.log_in()
        await peer.say(op="drain", reconnect_after_ms=5)
        await peer.close(code)

    async def stays(peer: Peer) -> None:
        await peer.log_in()
        await peer.accept()
        await peer.say(op="snap", ch=7, seq=1, data={"last": "5"})
        await forever(peer)

    nasty.acts = [sends_away, sends_away, sends_away, stays]
    before = Quick.waits
    async with nasty.client() as client, client.stream() as stream:
        await take(stream.ticker(BTC), 1)
    assert Quick.waits == before
    nasty.acts, nasty.connections = [*[sends_away] * 6, stays], 0
    async with nasty.client() as client, client.stream() as stream:
        await take(stream.ticker(BTC), 1)
    assert Quick.waits == before + 3


@pytest.mark.parametrize("code", [4000, 4001, 4003])
async def test_after_these_codes_it_gives_up_and_everybody_hears_of_it(
    nasty: Nasty, code: int
) -> None:
    async def act(peer: Peer) -> None:
        await peer.log_in()
        await peer.accept()
        await peer.say(op="snap", ch=7, seq=0, data={"trades": []})
        await peer.trade(1)
        await peer.close(code)

    nasty.acts = [act]
    async with nasty.client() as client, client.stream() as stream:
        trades = stream.trades(BTC)
        assert (await take(trades, 1))[0].trade_id == 1
        with pytest.raises(StreamClosed) as closed:
            await take(trades, 1)
        assert closed.value.code == code
        with pytest.raises(StreamClosed):
            stream.ticker(BTC)
    assert nasty.connections == 1


async def test_an_expired_token_is_renewed_before_coming_back(nasty: Nasty) -> None:
    async def first(peer: Peer) -> None:
        await peer.log_in()
        await peer.close(4103)

    async def second(peer: Peer) -> None:
        await peer.log_in()
        await peer.accept()
        await peer.say(op="snap", ch=7, seq=1, data={"last": "5"})
        await forever(peer)

    nasty.acts = [first, second]
    async with nasty.client() as client, client.stream() as stream:
        await take(stream.ticker(BTC), 1)
    assert nasty.tokens == ["t1", "t2"]


async def test_bad_credentials_fail_where_the_stream_is_opened(nasty: Nasty) -> None:
    async def act(peer: Peer) -> None:
        await peer.say(op="hello", epoch="e", limits={})
        await peer.hear("auth")
        await peer.say(op="error", code="invalid_token", msg="no", temporary=False)
        await peer.close(4001)

    nasty.acts = [act]
    client = nasty.client(token="stale")
    with pytest.raises(AuthError):
        async with client.stream():
            pass
    await client.close()


async def test_a_refused_channel_ends_with_its_reason_and_the_others_go_on(nasty: Nasty) -> None:
    async def act(peer: Peer) -> None:
        await peer.log_in()
        for _ in range(2):
            message = await peer.hear("sub")
            (wish,) = message["channels"]
            answer: dict[str, Any] = {"ch": 7}
            if wish["symbol"] == "NO-SUCH":
                answer = {"error": {"code": "unknown_symbol", "msg": "no", "temporary": False}}
            await peer.say(op="subbed", id=message["id"], subs=[answer])
        await peer.say(op="snap", ch=7, seq=1, data={"last": "5"})
        await forever(peer)

    nasty.acts = [act]
    async with nasty.client() as client, client.stream() as stream:
        missing, ticker = stream.trades("NO-SUCH"), stream.ticker(BTC)
        with pytest.raises(Refused) as refused:
            await take(missing, 1)
        assert refused.value.code == "unknown_symbol"
        await take(ticker, 1)


async def test_a_temporary_error_is_asked_again(nasty: Nasty) -> None:
    async def act(peer: Peer) -> None:
        await peer.log_in()
        message = await peer.hear("sub")
        error = {"code": "rate_limited", "msg": "slowly", "temporary": True, "retry_after_ms": 1}
        await peer.say(op="error", id=message["id"], **error)
        await peer.accept()
        await peer.say(op="snap", ch=7, seq=1, data={"last": "5"})
        await forever(peer)

    nasty.acts = [act]
    async with nasty.client() as client, client.stream() as stream:
        await take(stream.ticker(BTC), 1)


async def test_a_program_that_is_slow_loses_the_oldest_trades_and_is_told(
    nasty: Nasty, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr(TradesChannel, "bound", 10)

    async def act(peer: Peer) -> None:
        await peer.log_in()
        await peer.accept()
        await peer.say(op="snap", ch=7, seq=0, data={"trades": []})
        for seq in range(1, 31):
            await peer.trade(seq)
        await forever(peer)

    nasty.acts = [act]
    gaps: list[Gap] = []
    async with nasty.client() as client, client.stream(gaps.append) as stream:
        trades = stream.trades(BTC)
        await eventually(lambda: len(gaps) == 20)
        assert [one.trade_id for one in await take(trades, 10)] == list(range(21, 31))
        assert trades.dropped == 20 and {gap.why for gap in gaps} == {"queue_full"}


async def test_leaving_unsubscribes_and_closing_ends_every_loop(nasty: Nasty) -> None:
    left = asyncio.Event()

    async def act(peer: Peer) -> None:
        await peer.log_in()
        await peer.accept()
        await peer.say(op="snap", ch=7, seq=1, data={"last": "5"})
        assert (await peer.hear("unsub"))["chs"] == [7]
        left.set()
        await peer.accept()
        await forever(peer)

    nasty.acts = [act]
    async with nasty.client() as client:
        async with client.stream() as stream:
            async with stream.ticker(BTC) as ticker:
                await take(ticker, 1)
            async with asyncio.timeout(10):
                await left.wait()
            trades = stream.trades(BTC)
            loop = asyncio.create_task(collect(trades))
        async with asyncio.timeout(10):
            assert await loop == []


async def collect[T](subscription: AsyncIterator[T]) -> list[T]:
    return [item async for item in subscription]
