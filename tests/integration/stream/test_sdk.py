"""The SDK's streams against the real endpoint, over restarts."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal
from typing import Any

from tbot.client import AccountSnapshot, Entry, Gap, TBotClient

BTC = "BTC-USDT"


async def test_books_trades_and_best_prices_equal_the_feed(stack: Any, eventually: Any) -> None:
    gaps: list[Gap] = []
    rng = random.Random(7)
    async with TBotClient(stack.url, token=stack.tokens["alice"]) as client:  # noqa: SIM117
        async with client.stream(gaps.append) as stream:
            seen: list[tuple[int, list[Any], list[Any]]] = []
            full = stream.book(
                BTC,
                depth=0,
                on_update=lambda book: seen.append((book.update_id, book.bids(), book.asks())),
            )
            top, best, trades = (
                stream.book(BTC, depth=5),
                stream.best_prices(BTC),
                stream.trades(BTC),
            )
            await eventually(lambda: len(seen) == 1 and len(stream._numbers) == 4)
            truth: dict[int, tuple[list[Any], list[Any]]] = {0: ([], [])}
            for number in range(1, 400):
                side, offset = rng.choice([("bid", 0), ("ask", 100)])
                price = f"{100 + offset + rng.randrange(60)}.5"
                stack.feed.change(BTC, side, price, rng.choice(["0", "1.25", "3"]))
                book = stack.feed.books[BTC]
                bids, asks = book.levels(0)
                truth[number] = (
                    [(level.price, level.quantity) for level in bids],
                    [(level.price, level.quantity) for level in asks],
                )
                stack.feed.trade(BTC, price)
                stack.feed.quote(BTC, str(number))
                if number % 20 == 0:
                    await asyncio.sleep(0)
            await eventually(lambda: seen[-1][0] == 399)
            assert [one[0] for one in seen] == list(range(400))  # every update, none twice
            assert all((bids, asks) == truth[number] for number, bids, asks in seen)
            ids = [(await anext(trades)).trade_id for _ in range(399)]
            assert ids == list(range(1, 400))
            assert (await anext(best)).bid == Decimal(399)
            small = await anext(top)
            assert small.bids() == truth[399][0][:5] and small.asks() == truth[399][1][:5]
            assert await anext(full) is not small
    assert not gaps


async def test_private_and_public_streams_go_on_over_a_restart(
    new_stack: Any, eventually: Any
) -> None:
    first = await new_stack()
    await first.user()
    account_id = await first.account(USDT="1000000")
    port = int(first.url.rpartition(":")[2])
    gaps: list[Gap] = []
    async with TBotClient(first.url, token=first.tokens["alice"]) as client:  # noqa: SIM117
        async with client.stream(gaps.append) as stream:
            items: list[Any] = []
            books: list[Any] = []
            collecting = [
                asyncio.create_task(collect(stream.account(account_id), items)),
                asyncio.create_task(collect(stream.book(BTC, depth=5), books)),
            ]
            await eventually(lambda: items and books)
            trading = asyncio.create_task(trade(first.desk, account_id, 60))
            await eventually(lambda: len(items) > 20)
            await first.stop()
            await eventually(lambda: not books[-1].synced)
            await trading
            second = await new_stack(port=port)
            second.feed.change(BTC, "bid", "55", "1")
            await trade(second.desk, account_id, 20)
            last = items[0].seq + 80
            await eventually(lambda: items[-1].seq == last)
            await eventually(lambda: books[-1].synced and books[-1].best_bid == Decimal(55))
            assert stream.connections == 2
    for task in collecting:
        await task
    assert isinstance(items[0], AccountSnapshot)
    assert all(isinstance(item, Entry) for item in items[1:])
    assert [item.seq for item in items] == list(range(items[0].seq, last + 1))
    assert not gaps


async def test_a_token_is_renewed_inside_the_connection(new_stack: Any, eventually: Any) -> None:
    stack = await new_stack()
    await stack.user()
    stack.auth.settings.access_ttl_s = 60
    async with TBotClient(stack.url, token=await stack.login()) as client:
        tokens = client._tokens

        async def fresh(stale: str | None = None) -> str:
            pair = tokens._pair
            assert pair is not None
            pair.access = await stack.login()
            pair.renew_at_s = asyncio.get_running_loop().time() + 1
            return pair.access

        tokens.get = fresh  # type: ignore[method-assign]
        async with client.stream() as stream:
            trades = stream.trades(BTC)
            (session,) = stack.streams._sessions
            before = session.principal.expires_at_s
            await eventually(lambda: session.principal.expires_at_s > before)
            stack.feed.trade(BTC)
            assert (await anext(trades)).trade_id == 1
            assert stream.connections == 1


async def collect(subscription: Any, items: list[Any]) -> None:
    async for item in subscription:
        items.append(item)  # noqa: PERF401 - others look at it meanwhile


async def trade(desk: Any, account_id: Any, orders: int) -> None:
    """One entry an order."""
    for _ in range(orders):
        await desk.place(account_id)
