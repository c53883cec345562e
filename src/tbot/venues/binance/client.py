"""The Binance Spot adapter: `tbot.venues.base.Venue` over the WebSocket API and REST.

What changes anything (place, cancel) and the question by id go over the private WebSocket
connection; lists go over REST. Nothing here is ever repeated by itself: whoever asked decides.

The order path's promise, kept in `_call`: after the governor's permit there is no `await` until
the bytes are with the transport. The boot clock is read *before* `may_send` is asked, and that
reading is what the request is stamped with: a process that is stopped anywhere in between
produces a request that is too old for the venue's receive window.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Self

import structlog

from tbot.core.clock import boot_ns
from tbot.core.errors import (
    TBotError,
    VenueAmbiguous,
    VenueDown,
    VenueError,
    VenueNotSent,
    VenueRateLimited,
    VenueRefused,
)
from tbot.core.money import text
from tbot.core.settings import GatewaySettings
from tbot.core.tasks import Tasks
from tbot.venues.backoff import FullJitter
from tbot.venues.base import (
    Capabilities,
    DepthSnapshot,
    Instrument,
    Kline,
    MarketEvent,
    MarketTrade,
    OrderReport,
    Placement,
    UserEvent,
    VenueFill,
)
from tbot.venues.binance import market_wire, streams, wire
from tbot.venues.binance.clock import VenueClock
from tbot.venues.binance.connection import Answer
from tbot.venues.binance.lists import AccountLists, readable
from tbot.venues.binance.outcome import RefusalCode, failure
from tbot.venues.binance.rest import RestCalls
from tbot.venues.binance.session import ApiSession
from tbot.venues.budgets import AlignedWindow, Costs, Priority, RollingWindow
from tbot.venues.governor import Governor

_log = structlog.get_logger(__name__)

PLACE_COSTS: Final[Costs] = {"weight:1m": 1, "raw:5m": 1, "orders:10s": 1, "orders:1d": 1}
_CANCEL_COSTS: Final[Costs] = {"weight:1m": 1, "raw:5m": 1}
_QUERY_COSTS: Final[Costs] = {"weight:1m": 4, "raw:5m": 1}
_DEPTH_LIMIT: Final = 1000
_DEPTH_WEIGHT: Final = 50
_TRADES_WEIGHT: Final = 25
_KLINES_WEIGHT: Final = 2
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a venue that speaks Binance Spot is reached.

    Attributes:
        rest_url: Scheme and authority of REST.
        api_url: The WebSocket API, with its path.
        stream_url: Combined market streams, with the path.
    """

    rest_url: str
    api_url: str
    stream_url: str

    @classmethod
    def at(cls, url: str) -> Self:
        """Everything under one address, as the paper exchange serves it."""
        url = url.rstrip("/")
        socket_url = "ws" + url.removeprefix("http")
        return cls(url, f"{socket_url}/ws-api/v3", f"{socket_url}/stream")


class BinanceVenue:
    """One account on Binance Spot or on the paper exchange.

    Args:
        name: Our name of the venue, as `paper`.
        settings: Receive window, answer timeout and in-flight bound are taken from here.
        paper: The venue has deposits and a session id.
    """

    def __init__(
        self,
        name: str,
        endpoints: Endpoints,
        signer: wire.Signer,
        settings: GatewaySettings,
        *,
        paper: bool = False,
    ) -> None:
        self.name = name
        self.capabilities = Capabilities(deposits=paper)
        self._endpoints = endpoints
        self._signer = signer
        self._settings = settings
        self._paper = paper
        self._clock = VenueClock(self._ask_time)
        self.governor = Governor(
            [
                # The venue's own list, in `exchangeInfo`, adds the others before any order.
                AlignedWindow("weight:1m", 6000, 60.0),
                RollingWindow("connections:5m", 300, 300.0),
            ],
            self._clock.now_s,
            settings.requests_waiting_max,
        )
        self._rest = RestCalls(
            endpoints.rest_url,
            signer,
            self.governor,
            self._clock.now_ms,
            settings.receive_window_ms,
            self._stated_failure,
        )
        self._session = ApiSession(
            endpoints.api_url,
            signer,
            self.governor,
            self._clock.now_ms,
            settings.receive_window_ms,
            settings.in_flight_max,
            settings.events_max,
        )
        self._lists = AccountLists(self._rest)
        self._tasks = Tasks(f"venue-{name}")
        self._started = False

    async def start(self) -> None:
        """Measure the clock, learn the limits, connect; waits for as long as the venue is away."""
        if self._started:
            await self._session.ready()
            return
        self._started = True
        backoff = FullJitter()
        while True:
            try:
                await self._clock.measure()
                await self.instruments()
                break
            except (VenueDown, VenueRateLimited, VenueNotSent) as error:
                wait_s = max(backoff.next_s(), getattr(error, "retry_after_s", 0.0))
                _log.warning("venue_not_reached", venue=self.name, error=str(error))
                await asyncio.sleep(wait_s)
        self._tasks.start(self._clock.keep(), "clock")
        self._session.start()
        await self._session.ready()

    async def stop(self) -> None:
        """Close everything; safe to call twice."""
        await self._tasks.stop()
        await self._session.stop()
        await self._rest.close()

    async def wait_ready(self) -> None:
        """Wait until requests can be sent, as after a lost connection."""
        await self._session.ready()

    def estimate_wait_s(self) -> float:
        """How long an order placed now would wait for the venue's rate budget."""
        return self.governor.estimate_wait_s(PLACE_COSTS, Priority.NEW)

    async def session_id(self) -> str | None:
        """The paper exchange's session id, None for real venues."""
        if not self._paper:
            return None
        answer = await self._rest.get("/paper/v1/session", {}, weight=1, priority=Priority.RESOLVE)
        return str(_field(answer, "sessionId"))

    async def instruments(self) -> list[Instrument]:
        """All spot markets; also takes over the venue's rate limits."""
        info = await self._rest.get("/api/v3/exchangeInfo", {}, weight=20, priority=Priority.QUERY)
        for name, (limit, window_s, _) in wire.rate_limits(info.get("rateLimits", ())).items():
            shared = not name.startswith("orders")
            self.governor.set_bucket(AlignedWindow(name, limit, window_s, shared))
        return readable(lambda: wire.instruments(info, self.name))

    async def place(self, placement: Placement, may_send: Callable[[], bool]) -> OrderReport:
        """Send an order once; see `Venue.place`."""
        answer = await self._call(
            "order.place", wire.place_params(placement), PLACE_COSTS, Priority.NEW, may_send
        )
        try:
            return wire.order_report(answer, placement.client_id, placement.instrument)
        except (TBotError, LookupError, TypeError, ValueError) as error:
            raise VenueAmbiguous(f"unreadable answer: {error!r}", "unreadable") from error

    async def cancel(
        self, client_id: str, instrument: Instrument, may_send: Callable[[], bool]
    ) -> OrderReport:
        """Cancel an open order; see `Venue.cancel`."""
        params = wire.cancel_params(client_id, instrument)
        answer = await self._call("order.cancel", params, _CANCEL_COSTS, Priority.CANCEL, may_send)
        try:
            return wire.order_report(answer, client_id)
        except (TBotError, LookupError, TypeError, ValueError) as error:
            raise VenueAmbiguous(f"unreadable answer: {error!r}", "unreadable") from error

    async def query(self, client_id: str, instrument: Instrument) -> OrderReport | None:
        """The order as the venue has it; None when it answered that there is none."""
        params = {"symbol": instrument.venue_symbol, "origClientOrderId": client_id}
        try:
            answer = await self._call("order.status", params, _QUERY_COSTS, Priority.RESOLVE)
        except VenueRefused as error:
            if error.code == RefusalCode.UNKNOWN_ORDER:
                return None
            raise
        return readable(lambda: wire.order_report(answer, client_id))

    async def search(
        self, client_id: str, instrument: Instrument, since: datetime
    ) -> OrderReport | None:
        """Look for an order in *every* list the venue has, when `query` found none."""
        return await self._lists.search(client_id, instrument, since)

    async def open_orders(self) -> list[OrderReport]:
        """All open orders of the venue account, ours or not."""
        return await self._lists.open_orders(None)

    async def order_fills(self, instrument: Instrument, venue_order_id: str) -> list[VenueFill]:
        """Every execution of one order."""
        return await self._lists.order_fills(instrument, venue_order_id)

    async def balances(self) -> Mapping[str, tuple[Decimal, Decimal]]:
        """Asset → (free, locked) of the venue account."""
        return await self._lists.balances()

    async def deposit(self, deposit_id: str, asset: str, amount: Decimal) -> None:
        """Give the paper account funds; the same id again changes nothing."""
        if not self._paper:
            raise VenueRefused("only the paper venue takes deposits", RefusalCode.REQUEST)
        params: dict[str, str | int] = {"id": deposit_id, "asset": asset, "amount": text(amount)}
        await self._rest.post("/paper/v1/deposits", params, weight=1, priority=Priority.RESOLVE)

    def user_events(self) -> AsyncIterator[UserEvent]:
        """Private events for ever, for one reader; a `StreamGap` opens every subscription."""
        return self._session.events()

    def market_events(self, instruments: Sequence[Instrument]) -> AsyncIterator[MarketEvent]:
        """Public events for ever; a `StreamGap` opens every connection."""
        return streams.market_events(self._endpoints.stream_url, instruments, self.governor)

    async def depth_snapshot(self, instrument: Instrument) -> DepthSnapshot:
        """The best thousand levels of each side."""
        symbol = instrument.venue_symbol
        answer = await self._rest.get(
            "/api/v3/depth",
            {"symbol": symbol, "limit": _DEPTH_LIMIT},
            weight=_DEPTH_WEIGHT,
            priority=Priority.QUERY,
        )
        return readable(lambda: market_wire.depth_snapshot(symbol, answer))

    async def trades_from(self, instrument: Instrument, trade_id: int) -> list[MarketTrade]:
        """A thousand public trades from an id on; see `Venue.trades_from`."""
        symbol = instrument.venue_symbol
        answer = await self._rest.get(
            "/api/v3/historicalTrades",
            {"symbol": symbol, "fromId": trade_id, "limit": _PAGE},
            weight=_TRADES_WEIGHT,
            priority=Priority.BACKFILL,
        )
        return readable(lambda: [market_wire.past_trade(symbol, item) for item in answer])

    async def klines(
        self, instrument: Instrument, interval: str, from_ms: int, to_ms: int
    ) -> list[Kline]:
        """Up to a thousand of the venue's candles; see `Venue.klines`."""
        answer = await self._rest.get(
            "/api/v3/klines",
            {
                "symbol": instrument.venue_symbol,
                "interval": interval,
                "startTime": from_ms,
                "endTime": to_ms,
                "limit": _PAGE,
            },
            weight=_KLINES_WEIGHT,
            priority=Priority.BACKFILL,
        )
        return readable(lambda: [market_wire.kline(item) for item in answer])

    async def _ask_time(self) -> int:
        answer = await self._rest.get("/api/v3/time", {}, weight=1, priority=Priority.RESOLVE)
        return int(_field(answer, "serverTime"))

    async def _call(
        self,
        method: str,
        params: Mapping[str, str | int],
        costs: Costs,
        priority: Priority,
        may_send: Callable[[], bool] | None = None,
    ) -> Any:
        """One request over the private connection; its `result` on success.

        `may_send` is given for what changes something, and makes an unclear outcome
        `VenueAmbiguous` instead of `VenueDown`.
        """
        changes = may_send is not None
        try:
            self._session.connection().check_writable()
            permit = await self.governor.take(costs, priority, may_send)
            try:
                pending = self._write(method, params, may_send)
            except BaseException:
                permit.cancel()
                raise
        except VenueNotSent as error:
            if changes:
                raise
            raise VenueDown(str(error), error.code) from error
        try:
            async with asyncio.timeout(self._settings.answer_timeout_s):
                answer = await pending
        except TimeoutError:
            raise _unclear("no answer within the timeout", changes) from None
        except VenueAmbiguous as error:
            raise _unclear(str(error), changes) from error
        else:
            succeeded = answer.get("status") == 200
            counts = _counts(answer)
            permit.settle(counts, free=("weight:1m",) if succeeded and changes else ())
            if succeeded and "result" in answer:
                return answer["result"]
            raise self._error(answer, changes)
        finally:
            permit.settle()

    def _write(
        self,
        method: str,
        params: Mapping[str, str | int],
        may_send: Callable[[], bool] | None,
    ) -> asyncio.Future[Answer]:
        """Read the clock, ask for leave, sign, write: not a coroutine, so nothing can intervene."""
        connection = self._session.connection()
        connection.check_writable()
        boot = boot_ns()
        if may_send is not None and not may_send():
            raise VenueNotSent("no leave to send any more", "too_late")
        request_id = connection.next_id()
        frame = wire.api_request(
            request_id,
            method,
            params,
            self._signer,
            self._clock.at_ms(boot),
            self._settings.receive_window_ms,
        )
        return connection.write(request_id, frame)

    def _error(self, answer: Answer, changes: bool) -> VenueError:
        stated = answer.get("error")
        stated = stated if isinstance(stated, dict) else {}
        code = stated.get("code")
        status = answer.get("status")
        now_ms = self._clock.now_ms()
        data = stated.get("data")
        retry_at = data.get("retryAfter") if isinstance(data, dict) else None
        error = failure(
            status if isinstance(status, int) else 0,
            code if isinstance(code, int) else None,
            str(stated.get("msg", "")),
            changes=changes,
            retry_after_s=(
                max(0.0, (retry_at - now_ms) / 1e3) if isinstance(retry_at, int) else None
            ),
            now_ms=now_ms,
        )
        self._stated_failure(error)
        return error

    def _stated_failure(self, error: VenueError) -> None:
        """Freeze what the venue told us to leave alone; doubt the clock when it does."""
        if isinstance(error, VenueRateLimited):
            names = self.governor.names
            if error.code == RefusalCode.ORDER_RATE:
                frozen = names("orders")
            elif error.code == RefusalCode.BANNED:
                frozen = names()
            else:
                frozen = [*names("weight"), *names("raw")]
            self.governor.freeze(frozen, error.retry_after_s)
        elif error.code == RefusalCode.TIMESTAMP:
            self._clock.doubt()


def _unclear(why: str, changes: bool) -> VenueError:
    return VenueAmbiguous(why, "no_answer") if changes else VenueDown(why, "no_answer")


def _counts(answer: Answer) -> dict[str, int]:
    try:
        limits = wire.rate_limits(answer.get("rateLimits", ()))
    except (LookupError, TypeError):
        return {}
    return {name: used for name, (_, _, used) in limits.items() if used is not None}


def _field(answer: Any, name: str) -> Any:
    if not isinstance(answer, dict) or name not in answer:
        raise VenueDown(f"unreadable answer: no {name}", "unreadable")
    return answer[name]
