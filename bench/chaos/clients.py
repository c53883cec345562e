"""What all clients share: who they are, what they are told, and how they insist on an answer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx

from .log import Log
from .wire import Answer, Line, Unanswered, Unsent

RETRY_FOR_S = 90.0
_PLACED_KEPT = 20_000
# Certainly not done: ask again. `not_found` is none of them.
NOT_DONE = frozenset({401, 429, 503})


@dataclass(frozen=True, slots=True)
class Market:
    """An instrument's grid and its last best bid."""

    symbol: str
    tick: Decimal
    step: Decimal
    bid: Decimal


class Prices:
    """The exchange's own prices, looked up now and then without asking T-Bot.

    Args:
        url: Of the exchange.
        symbols: As T-Bot writes them.
    """

    def __init__(self, url: str, symbols: Sequence[str]) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=2)
        self._symbols = symbols
        self._grid: dict[str, tuple[Decimal, Decimal]] = {}
        self.markets: dict[str, Market] = {}

    async def run(self) -> None:
        """Until cancelled; an exchange that is away leaves the last prices standing."""
        while True:
            with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
                if not self._grid:
                    await self._learn()
                tickers = {
                    t["symbol"]: t
                    for t in (await self._http.get("/api/v3/ticker/bookTicker")).json()
                }
                for symbol in self._symbols:
                    tick, step = self._grid[symbol]
                    bid = Decimal(tickers[symbol.replace("-", "")]["bidPrice"])
                    self.markets[symbol] = Market(symbol, tick, step, bid)
            await asyncio.sleep(0.5)

    async def _learn(self) -> None:
        found = (await self._http.get("/api/v3/exchangeInfo")).json()
        by_name = {
            s["symbol"]: {f["filterType"]: f for f in s["filters"]} for s in found["symbols"]
        }
        for symbol in self._symbols:
            rules = by_name[symbol.replace("-", "")]
            self._grid[symbol] = (
                Decimal(rules["PRICE_FILTER"]["tickSize"]).normalize(),
                Decimal(rules["LOT_SIZE"]["stepSize"]).normalize(),
            )


class Token:
    """One user's access token, good at every API process."""

    def __init__(self, urls: Sequence[str], credentials: dict[str, Any]) -> None:
        self._urls = urls
        self._credentials = credentials
        self._lock = asyncio.Lock()
        self._http = httpx.AsyncClient(timeout=10)
        self.text = ""

    async def renew(self, old: str) -> str:
        """A token other than `old`; waits for a server to come back."""
        async with self._lock:
            while self.text == old:
                url = random.choice(self._urls)
                data = {name: self._credentials[name] for name in ("username", "password")}
                with contextlib.suppress(httpx.TransportError, KeyError, ValueError):
                    answer = await self._http.post(f"{url}/v1/token", data=data)
                    if answer.status_code == 200:
                        self.text = answer.json()["access_token"]
                        break
                await asyncio.sleep(0.1)
            return self.text


@dataclass(eq=False)
class _Wait:
    api: int
    since_s: float
    trading: bool
    over: asyncio.Future[float]


class Pulse:
    """Hears of every acknowledgement and execution: tells when things go on after a fault."""

    def __init__(self) -> None:
        self._waits: list[_Wait] = []
        self._placed: OrderedDict[str, float] = OrderedDict()
        self.acknowledged = 0

    def placed(self, order_id: str, sent_s: float) -> None:
        """An order was acknowledged; its execution is a beat."""
        self._placed[order_id] = sent_s
        if len(self._placed) > _PLACED_KEPT:
            self._placed.popitem(last=False)

    def filled(self, order_id: str) -> None:
        """An order executed."""
        sent_s = self._placed.pop(order_id, None)
        if sent_s is not None:
            self._beat(-1, sent_s, trading=True)

    def acked(self, api: int, sent_s: float) -> None:
        """A request sent at this time was acknowledged by this API process."""
        self.acknowledged += 1
        if self._waits:
            self._beat(api, sent_s, trading=False)

    def _beat(self, api: int, sent_s: float, *, trading: bool) -> None:
        for wait in self._waits:
            same = trading if wait.trading else (not trading and wait.api == api)
            if same and sent_s >= wait.since_s and not wait.over.done():
                wait.over.set_result(time.monotonic())
        self._waits = [wait for wait in self._waits if not wait.over.done()]

    def next(self, api: int, since_s: float, *, trading: bool) -> asyncio.Future[float]:
        """When something that was sent after `since_s` is first acknowledged (or executed)."""
        over: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waits.append(_Wait(api, since_s, trading, over))
        return over


@dataclass(eq=False)
class Request:
    """Something a client asks for, as often as it takes under the same key.

    Attributes:
        number: Its own, in the log.
        kind: `order`, `cancel`, `transfer`, `pending`, `post`, `void`, `reverse`, `linked`, `bulk`,
            `account`.
        key: For `Idempotency-Key`; None sends none.
    """

    number: int
    kind: str
    method: str
    path: str
    body: dict[str, Any] | None
    key: str | None
    data: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data = b"" if self.body is None else json.dumps(self.body).encode()


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a request, as far as its client knows.

    Attributes:
        answer: The clear one; None when the client gave up or walked away.
        unclear: Some attempt may have been carried out without our being told.
        abandoned: The client chose not to ask again.
    """

    answer: Answer | None
    unclear: bool
    abandoned: bool = False

    @property
    def accepted(self) -> bool:
        """Whether the server acknowledged it."""
        return self.answer is not None and self.answer.status < 300


class Floor:
    """Everything the clients of a run share."""

    def __init__(self, ports: Sequence[int], token: Token, log: Log, prices: Prices) -> None:
        self.ports = ports
        self.token = token
        self.log = log
        self.prices = prices
        self.pulse = Pulse()
        self.numbers = 0
        self.disconnects = 0
        self.answered_s: list[float] = []
        self.logged_s: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.trading: list[str] = []
        self.cash: list[str] = []
        self.transfers = False

    def request(
        self,
        kind: str,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        key: str | None,
        **facts: Any,
    ) -> Request:
        """A request with a number of its own."""
        self.numbers += 1
        return Request(self.numbers, kind, method, path, body, key, facts=facts)

    def lines(self) -> list[Line]:
        """A connection to each API process, for one client."""
        return [Line("127.0.0.1", port) for port in self.ports]

    async def asked(self, request: Request) -> None:
        """Write down what is about to be asked."""
        begun_s = time.monotonic()
        await self.log.write(
            "ask",
            n=request.number,
            kind=request.kind,
            path=request.path,
            body=request.body,
            key=request.key,
            **request.facts,
        )
        self.logged_s.append(time.monotonic() - begun_s)

    def ended(self, request: Request, told: Told, kind: str = "end") -> None:
        """Write down what was answered."""
        answer = told.answer
        if answer is None:
            how = "abandoned" if told.abandoned else "gave_up"
            self.log.note(kind, n=request.number, how=how, unclear=told.unclear)
            return
        self.log.note(
            kind,
            n=request.number,
            how="ack" if told.accepted else "refused",
            status=answer.status,
            code="" if told.accepted else answer.code,
            id=_id_of(answer) if told.accepted else None,
            sha=hashlib.sha256(answer.body).hexdigest()[:16],
            replayed=answer.replayed,
            unclear=told.unclear,
        )

    async def insist(
        self,
        request: Request,
        lines: Sequence[Line],
        api: int,
        rng: random.Random,
        *,
        abandon: float = 0.0,
        hang_up_after_s: float | None = None,
    ) -> Told:
        """Send until there is a clear answer, to one API process or the other.

        Args:
            api: The first to ask.
            abandon: Chance of walking away after an attempt whose outcome is unclear.
            hang_up_after_s: Close the connection this soon at the first attempt.
        """
        unclear = False
        until_s = time.monotonic() + RETRY_FOR_S
        while time.monotonic() < until_s:
            token, sent_s = self.token.text, time.monotonic()
            try:
                answer = await lines[api].request(
                    request.method, request.path, token, request.data, request.key, hang_up_after_s
                )
            except Unsent:
                self.statuses["unsent"] += 1
            except Unanswered:
                unclear = True
                self.statuses["unanswered"] += 1
            else:
                self.statuses[f"{answer.status}"] += 1
                self.answered_s.append(time.monotonic() - sent_s)
                if answer.status == 401:
                    await self.token.renew(token)
                    continue
                if answer.status < 500 and answer.status not in NOT_DONE:
                    if answer.status < 300:
                        self.pulse.acked(api, sent_s)
                    return Told(answer, unclear)
                if answer.status not in NOT_DONE:
                    unclear = True
                    if answer.status != 504:
                        self.log.note("fault", n=request.number, status=answer.status)
            if hang_up_after_s is not None:
                self.disconnects += 1
                hang_up_after_s = None
            if unclear and rng.random() < abandon:
                return Told(None, unclear, abandoned=True)
            await asyncio.sleep(rng.uniform(0.02, 0.2))
            api = rng.randrange(len(lines)) if rng.random() < 0.6 else api
        return Told(None, unclear)


def _id_of(answer: Answer) -> Any:
    document = answer.json()
    for name in ("id", "group_id"):
        if name in document:
            return document[name]
    return None
