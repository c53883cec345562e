"""The SDK's account streams and orders against a nasty server: nothing lost, doubled or guessed."""

from __future__ import annotations

from typing import Any

import pytest

from nastyserver import ACCOUNT, BTC, Nasty, Peer, entry, forever, snapshot, take
from tbot.client import AccountSnapshot, Entry, OutcomeUnknown
from tbot.client.channels import AccountChannel


async def test_an_account_resumes_by_place_and_a_reordered_entry_is_asked_for_again(
    nasty: Nasty,
) -> None:
    async def first(peer: Peer) -> None:
        await peer.log_in()
        assert "resume" not in await peer.accept()
        await peer.say(**snapshot(5))
        await peer.say(**entry(6))
        await peer.say(**entry(6))
        await peer.say(**entry(8))  # out of order
        wish = await peer.accept(recovered=True)
        assert wish["resume"] == {"seq": 6, "hash": f"{6:016x}"}
        await peer.say(**entry(7))
        peer.socket.transport.abort()

    async def second(peer: Peer) -> None:
        await peer.log_in("another run")
        wish = await peer.accept(recovered=True)
        assert wish["resume"] == {"seq": 7, "hash": f"{7:016x}"}
        await peer.say(**entry(8))
        await peer.close(4202)

    async def restored(peer: Peer) -> None:
        await peer.log_in()
        assert (await peer.accept(recovered=False))["resume"]["seq"] == 8
        await peer.say(**snapshot(3))
        await peer.say(**entry(4))
        await forever(peer)

    nasty.acts = [first, second, restored]
    async with nasty.client() as client, client.stream() as stream:
        items = await take(stream.account(ACCOUNT), 6)
        with pytest.raises(ValueError, match="already"):
            stream.account(ACCOUNT)
    kinds = [(type(item), item.seq) for item in items]
    assert kinds == [
        (AccountSnapshot, 5),
        (Entry, 6),
        (Entry, 7),
        (Entry, 8),
        (AccountSnapshot, 3),
        (Entry, 4),
    ]


async def test_a_slow_reader_of_an_account_keeps_nothing_else_waiting_and_misses_nothing(
    nasty: Nasty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccountChannel, "bound", 4)
    heard: list[str] = []

    async def act(peer: Peer) -> None:
        await peer.log_in()
        message = await peer.hear("sub")
        numbers = {"account": 7, "trades": 8}
        while True:
            wishes = [dict(wish) for wish in message["channels"]]
            subs = [{"ch": numbers[wish["channel"]]} for wish in wishes]
            await peer.say(op="subbed", id=message["id"], subs=subs)
            peer.wishes += wishes
            if len(peer.wishes) == 2:
                break
            message = await peer.hear("sub")
        await peer.say(**snapshot(10))
        await peer.say(op="snap", ch=8, seq=0, data={"trades": []})
        for seq in range(11, 17):  # two of them are more than there is room for
            await peer.say(**entry(seq))
        assert (await peer.hear("unsub"))["chs"] == [7]
        await peer.trade(1, ch=8)
        wish = await peer.accept(recovered=True)
        heard.append(f"{wish['resume']['seq']} {wish['resume']['hash']}")
        for seq in range(wish["resume"]["seq"] + 1, 17):
            await peer.say(**entry(seq))
        await forever(peer)

    nasty.acts = [act]
    async with nasty.client() as client, client.stream() as stream:
        account, trades = stream.account(ACCOUNT), stream.trades(BTC)
        assert [one.trade_id for one in await take(trades, 1)] == [1]  # nobody took from the other
        first, *entries = await take(account, 7)
    assert isinstance(first, AccountSnapshot) and first.seq == 10
    assert [one.seq for one in entries] == list(range(11, 17))
    assert heard == [f"13 {13:016x}"] and stream.connections == 1


async def test_a_lost_connection_does_not_bring_back_what_has_no_room(
    nasty: Nasty, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr(AccountChannel, "bound", 2)

    async def first(peer: Peer) -> None:
        await peer.log_in()
        await peer.accept()
        await peer.say(**snapshot(10))
        await peer.say(**entry(11))
        await peer.hear("unsub")
        await peer.close(4201)

    async def second(peer: Peer) -> None:
        await peer.log_in()
        wish = await peer.accept(number=8)
        assert wish["channel"] == "trades"
        await peer.say(op="snap", ch=8, seq=0, data={"trades": []})
        await peer.trade(1, ch=8)
        wish = await peer.accept(recovered=True)
        assert wish["resume"]["seq"] == 11
        await peer.say(**entry(12))
        await forever(peer)

    nasty.acts = [first, second]
    async with nasty.client() as client, client.stream() as stream:
        account = stream.account(ACCOUNT)
        await eventually(lambda: account.full and stream.connections == 2)
        await take(stream.trades(BTC), 1)
        assert [one.seq for one in await take(account, 3)] == [10, 11, 12]


@pytest.mark.parametrize("end", [4001, "invalid_token"])
async def test_an_order_whose_answer_was_lost_is_unknown_however_the_stream_goes_on(
    nasty: Nasty, end: int | str
) -> None:
    async def first(peer: Peer) -> None:
        await peer.log_in()
        await peer.hear("place")
        peer.socket.transport.abort()

    async def second(peer: Peer) -> None:
        if isinstance(end, int):
            await peer.close(end)
            return
        await peer.log_in()
        message = await peer.hear("place")
        said = {"code": end, "detail": "no", "status": 401}
        await peer.say(op="error", id=message["id"], code=end, temporary=False, problem=said)
        await forever(peer)

    nasty.acts = [first, second]
    async with nasty.client() as client, client.stream() as stream:
        with pytest.raises(OutcomeUnknown) as unknown:
            await stream.place(ACCOUNT, BTC, "buy", quantity="1", client_order_id="mine")
    assert unknown.value.key == "mine"
