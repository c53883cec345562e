"""The clients: each asks for one thing after another, mostly sensible ones, and insists.

What a client asks for follows from its seed; what it is told does not. Amounts have at most two
decimals, so that every effect can be predicted to the last digit.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from .clients import Floor, Request, Told
from .story import AT_THE_EDGE, PASSING
from .wire import Answer, Line

SYMBOLS = ("BTC-USDT", "ETH-USDT", "SOL-USDT")
CASH_OVERDRAFT = "2000"
ABANDON = 0.1
HANG_UP = 0.02
_REMEMBERED = 200


@dataclass(frozen=True, slots=True)
class Pending:
    """A pending transfer that its client has not resolved."""

    id: str
    amount: Decimal


class Client:
    """One client: its own connections, its own memory, one request at a time.

    Args:
        number: Its own, from 0.
    """

    def __init__(self, number: int, floor: Floor, seed: int) -> None:
        self._number = number
        self._floor = floor
        self._random = random.Random(f"client:{seed}:{number}")
        self._lines: list[Line] = floor.lines()
        self._home = number % len(self._lines)
        self._count = 0
        self._done: list[tuple[Request, str]] = []
        self._live: list[str] = []
        self._pending: list[Pending] = []
        self._posted: list[str] = []
        orders = (self._order, 16), (self._cancel, 10), (self._repeat, 6), (self._mutate, 3)
        transfers = (
            (self._transfer, 24),
            (self._pend, 12),
            (self._post, 8),
            (self._void, 3),
            (self._race, 1),
            (self._reverse, 2),
            (self._linked, 3),
            (self._bulk, 2),
        )
        self._menu = list(orders + (transfers if floor.transfers else ()))

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`."""
        ways, weights = [way for way, _ in self._menu], [weight for _, weight in self._menu]
        while not stop.is_set():
            if len(self._live) > 30:
                await self._cancel()
            await self._random.choices(ways, weights)[0]()
        for line in self._lines:
            line.close()

    def _name(self) -> str:
        self._count += 1
        return f"c{self._number}-{self._count}"

    async def _perform(self, request: Request, twins: bool = False) -> Told:
        """Ask, with the troubles that clients have: hanging up, walking away, asking twice."""
        floor, rng = self._floor, self._random
        await floor.asked(request)
        if twins:
            first, second = await asyncio.gather(
                floor.insist(request, self._lines, 0, rng),
                floor.insist(request, [*floor.lines()], 1, rng),
            )
            if second.accepted and not first.accepted:
                first, second = second, first
            first = replace(first, unclear=first.unclear or second.unclear)
            floor.ended(request, first)
            floor.ended(request, second, "twin")
            return first
        hang_up_s = rng.uniform(0, 0.008) if rng.random() < HANG_UP else None
        told = await floor.insist(
            request, self._lines, self._home, rng, abandon=ABANDON, hang_up_after_s=hang_up_s
        )
        floor.ended(request, told)
        return told

    def _remember(self, request: Request, told: Told) -> None:
        """Keep it for a repetition, if its answer is one that is repeated."""
        if told.accepted or (
            told.answer is not None
            and request.key is not None
            and told.answer.code not in PASSING | AT_THE_EDGE
        ):
            entry = request, "ack" if told.accepted else "refused"
            if len(self._done) < _REMEMBERED:
                self._done.append(entry)
            else:
                self._done[self._random.randrange(_REMEMBERED)] = entry

    # Orders

    async def _order(self) -> None:
        rng, floor = self._random, self._floor
        name = self._name()
        body: dict[str, Any] = {
            "account_id": rng.choice(floor.trading),
            "symbol": rng.choice(SYMBOLS),
            "side": rng.choice(("buy", "sell")),
        }
        market = floor.prices.markets.get(body["symbol"])
        if market is None:
            await asyncio.sleep(0.1)
            return
        style = rng.random()  # by which key it is repeated: its own, the header's, or both
        if style < 0.6:
            body["client_order_id"] = name
        if rng.random() < 0.5:
            body |= {"type": "market", "quote_amount": str(rng.randint(10, 40))}
        else:
            away = Decimal(rng.randint(-5, 40)) / 10_000
            price = market.bid * (1 - away if body["side"] == "buy" else 1 + away)
            price = (price / market.tick).to_integral_value() * market.tick
            quantity = Decimal(rng.randint(15, 60)) / price
            quantity = (quantity / market.step).to_integral_value() * market.step
            body |= {"type": "limit", "limit_price": f"{price:f}", "quantity": f"{quantity:f}"}
        key = name if style > 0.3 else None
        request = floor.request("order", "POST", "/v1/orders", body, key)
        sent_s = time.monotonic()
        told = await self._perform(request, twins=rng.random() < 0.03)
        self._remember(request, told)
        if told.accepted and told.answer is not None:
            order_id = told.answer.json()["id"]
            floor.pulse.placed(order_id, sent_s)
            if body["type"] == "limit":
                self._live.append(order_id)

    async def _cancel(self) -> None:
        if not self._live:
            return
        order_id = self._live.pop(self._random.randrange(len(self._live)))
        key = self._name() if self._random.random() < 0.5 else None
        request = self._floor.request(
            "cancel", "DELETE", f"/v1/orders/{order_id}", None, key, of=order_id
        )
        self._remember(request, await self._perform(request))

    # Transfers

    def _pair(self) -> tuple[str, str]:
        floor, rng = self._floor, self._random
        place = floor.cash if rng.random() < 0.5 else floor.trading
        source, target = rng.sample(place, 2)
        return source, target

    def _money(self) -> str:
        rng = self._random
        cents = rng.randint(1, 5_000) if rng.random() < 0.9 else rng.randint(5_000, 200_000)
        if rng.random() < 0.01:
            cents = 10**14  # more than anybody has
        return f"{Decimal(cents).scaleb(-2):f}"

    def _item(self) -> dict[str, Any]:
        source, target = self._pair()
        return {
            "source_account_id": source,
            "target_account_id": target,
            "asset": "USDT",
            "amount": self._money(),
            "metadata": {"tag": self._name()},
        }

    async def _transfer(self) -> None:
        body = self._item()
        request = self._floor.request(
            "transfer", "POST", "/v1/transfers", body, body["metadata"]["tag"]
        )
        told = await self._perform(request, twins=self._random.random() < 0.05)
        self._remember(request, told)
        self._note_posted(told)

    def _note_posted(self, told: Told) -> None:
        if told.accepted and told.answer is not None:
            self._posted.append(told.answer.json()["id"])
            del self._posted[:-50]

    async def _pend(self) -> None:
        body = self._item() | {"pending": True}
        expires = self._random.random() < 0.25
        if expires:
            body["expires_in_s"] = self._random.randint(1, 6)
        request = self._floor.request(
            "pending", "POST", "/v1/transfers", body, body["metadata"]["tag"]
        )
        told = await self._perform(request, twins=self._random.random() < 0.03)
        self._remember(request, told)
        if told.accepted and told.answer is not None:
            if expires and self._random.random() < 0.7:
                return  # left to expire
            self._pending.append(Pending(told.answer.json()["id"], Decimal(body["amount"])))

    def _resolution(self, pending: Pending, kind: str) -> Request:
        body: dict[str, Any] | None = None
        if kind == "post":
            cents = int(pending.amount * 100)
            body = {}
            if self._random.random() < 0.4:
                part = Decimal(self._random.randint(1, cents)).scaleb(-2)
                body = {"amount": f"{part:f}"}
        return self._floor.request(
            kind,
            "POST",
            f"/v1/transfers/{pending.id}/{kind}",
            body,
            self._name(),
            of=pending.id,
        )

    def _take(self) -> Pending | None:
        if not self._pending:
            return None
        return self._pending.pop(self._random.randrange(len(self._pending)))

    async def _post(self) -> None:
        pending = self._take()
        if pending is not None:
            request = self._resolution(pending, "post")
            told = await self._perform(request, twins=self._random.random() < 0.05)
            self._remember(request, told)
            self._note_posted(told)

    async def _void(self) -> None:
        pending = self._take()
        if pending is not None:
            request = self._resolution(pending, "void")
            self._remember(request, await self._perform(request))

    async def _race(self) -> None:
        """Post and void the same pending transfer at once, at two processes: one wins."""
        pending = self._take()
        if pending is None:
            return
        floor = self._floor
        requests = [self._resolution(pending, kind) for kind in ("post", "void")]
        for request in requests:
            await floor.asked(request)
        told = await asyncio.gather(
            floor.insist(requests[0], self._lines, 0, self._random),
            floor.insist(requests[1], floor.lines(), 1, self._random),
        )
        for request, outcome in zip(requests, told, strict=True):
            floor.ended(request, outcome)

    async def _reverse(self) -> None:
        if not self._posted:
            return
        of = self._random.choice(self._posted)  # sometimes one that was reversed already
        request = self._floor.request(
            "reverse", "POST", f"/v1/transfers/{of}/reverse", {}, self._name(), of=of
        )
        self._remember(request, await self._perform(request))

    async def _linked(self) -> None:
        items = [self._item() for _ in range(self._random.randint(2, 5))]
        request = self._floor.request(
            "linked", "POST", "/v1/transfers/linked", {"transfers": items}, self._name()
        )
        self._remember(request, await self._perform(request))

    async def _bulk(self) -> None:
        """Each item is a command of its own, with a key of its own."""
        items = [self._item() for _ in range(self._random.randint(5, 30))]
        request = self._floor.request(
            "bulk", "POST", "/v1/transfers/bulk", {"transfers": items}, self._name()
        )
        await self._floor.asked(request)
        told = await self._floor.insist(request, self._lines, self._home, self._random)
        if told.answer is not None and told.accepted:
            results = _results(told.answer)
            self._floor.log.note("items", n=request.number, unclear=told.unclear, results=results)
            if self._random.random() < 0.5 and all(status < 500 for status, _ in results):
                await self._bulk_again(request, items)
        self._floor.ended(request, told)

    async def _bulk_again(self, request: Request, items: list[dict[str, Any]]) -> None:
        """The same list is answered alike; every other one under its key is refused."""
        rng, floor = self._random, self._floor
        others = [items[::-1], items[1:], items[:-1], [*items, self._item()]]
        more = f"{Decimal(items[0]['amount']) + Decimal('0.01'):f}"
        others.append([{**items[0], "amount": more}, *items[1:]])
        changed = [
            Request(request.number, "bulk", "POST", request.path, {"transfers": other}, request.key)
            for other in rng.sample(others, 2)
        ]
        # All at once, each over connections of its own.
        ways = [floor.lines() for _ in (request, *changed)]
        again, *refused = await asyncio.gather(
            *(
                floor.insist(asked, lines, rng.randrange(len(lines)), rng)
                for asked, lines in zip((request, *changed), ways, strict=True)
            )
        )
        for line in (line for lines in ways for line in lines):
            line.close()
        if again.answer is not None:
            results = _results(again.answer) if again.accepted else []
            floor.log.note("items_again", n=request.number, results=results)
        for told in refused:
            self._note_mutated(request, told)

    # The same again

    async def _repeat(self) -> None:
        if not self._done:
            return
        request, _ = self._random.choice(self._done)
        api = self._random.randrange(len(self._lines))
        told = await self._floor.insist(request, self._lines, api, self._random)
        self._floor.ended(request, told, "again")

    async def _mutate(self) -> None:
        """A key that was used, with other content: refused, and without effect."""
        known = [(r, how) for r, how in self._done if r.body and r.kind in _MUTABLE]
        if not known:
            return
        request, how = self._random.choice(known)
        assert request.body is not None
        body = dict(request.body)
        if request.kind == "order":
            if request.key is None and how == "refused":
                return  # nothing was kept: it would be a new order
            body["side"] = "buy" if body["side"] == "sell" else "sell"
        elif self._random.random() < 0.5:
            mine = body["source_account_id"], body["target_account_id"]
            rest = [account for account in self._floor.cash if account not in mine]
            if not rest:
                return
            body["source_account_id"] = self._random.choice(rest)
        else:
            body["amount"] = f"{Decimal(body['amount']) + Decimal('0.01'):f}"
        changed = Request(
            request.number, request.kind, request.method, request.path, body, request.key
        )
        told = await self._floor.insist(changed, self._lines, self._home, self._random)
        self._note_mutated(request, told)

    def _note_mutated(self, request: Request, told: Told) -> None:
        if told.answer is not None:
            self._floor.log.note(
                "mutated", n=request.number, status=told.answer.status, code=told.answer.code
            )


def _results(answer: Answer) -> list[list[Any]]:
    """Status and id of each item of a bulk request."""
    results = answer.json()["results"]
    return [[item["status"], (item.get("transfer") or {}).get("id")] for item in results]


_MUTABLE = ("order", "transfer", "pending")


async def open_accounts(floor: Floor, trading: int, cash: int) -> None:
    """Accounts that last for the whole run; those without a venue live on their overdrafts."""
    rng = random.Random(0)
    lines = floor.lines()

    async def opened(body: dict[str, Any]) -> str:
        request = floor.request("account", "POST", "/v1/accounts", body, f"open-{floor.numbers}")
        await floor.asked(request)
        told = await floor.insist(request, lines, 0, rng)
        floor.ended(request, told)
        if not told.accepted or told.answer is None:
            raise RuntimeError(f"no account: {told}")
        return str(told.answer.json()["id"])

    balance = {"USDT": "1000000", "BTC": "10", "ETH": "200", "SOL": "5000"}
    for number in range(trading):
        body = {
            "name": f"chaos {number}",
            "venue": "paper",
            "starting_balance": balance,
            "limits": {"max_open_orders": 100_000},
        }
        floor.trading.append(await opened(body))
    if floor.transfers:
        for number in range(cash):
            limits = {"overdraft": {"USDT": CASH_OVERDRAFT}}
            body = {"name": f"chaos cash {number}", "kind": "cash", "limits": limits}
            floor.cash.append(await opened(body))
    for line in lines:
        line.close()
