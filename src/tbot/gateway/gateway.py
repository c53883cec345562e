"""The gateway: the one speaker for a venue account.

Its life is a row of *epochs*, one for each time it holds the lease. An epoch begins by holding new
orders back, listening to the venue, loading every open order and asking for each; only then are
new orders sent. What was open before the epoch is never sent in it: an order's only sender is the
process that held the lease when the order was accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import UUID

import asyncpg
import structlog
from prometheus_client import Gauge

from tbot.core.bus import Bus, wait_for_wake
from tbot.core.clock import boot_s
from tbot.core.errors import VenueError
from tbot.core.ids import new_id
from tbot.core.log import heard
from tbot.core.settings import GatewaySettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.gateway.lease import Connect, Lease, this_process
from tbot.gateway.reconciler import Reconciler
from tbot.gateway.reports import Reports
from tbot.gateway.sender import Sender
from tbot.gateway.session import VenueSession
from tbot.gateway.tracked import OpenOrders, Tracked
from tbot.journal.commands import Committed
from tbot.journal.committer import Committer
from tbot.orders import store
from tbot.orders.model import Order
from tbot.venues.backoff import FullJitter
from tbot.venues.base import Instrument, OrderReport, StreamGap, UserEvent, Venue

_log = structlog.get_logger(__name__)

_SWEEP_S: Final = 1.0
_LOOK_S_MIN: Final = 0.05
_DRAIN_S: Final = 2.0
_EPOCH_PAUSE_S: Final = 0.2
_INSTRUMENTS_S: Final = 3600.0
_HALTED_LOOK_S: Final = 2.0

_open_gauge = Gauge("tbot_gateway_open_orders", "Open orders that the gateway follows.", ["venue"])
_leading_gauge = Gauge("tbot_gateway_leading", "Whether this process holds the lease.", ["venue"])

_UNSETTLED_SQL: Final = (
    "SELECT id, seq FROM orders WHERE venue = $1"
    " AND state NOT IN ('filled', 'canceled', 'rejected', 'expired')"
    " AND (state IN ('pending_new', 'unknown') OR cancel_requested)"
)


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What a gateway works with.

    Attributes:
        connect: Opens a connection for the lease.
        on_instruments: Told of the venue's instruments once they are known and saved.
    """

    venue: Venue
    committer: Committer
    pool: asyncpg.Pool[asyncpg.Record]
    bus: Bus
    settings: GatewaySettings
    connect: Connect
    on_instruments: Callable[[Sequence[Instrument]], None] = lambda _instruments: None


class Gateway:
    """Speaks for one venue account whenever it holds its lease.

    Args:
        parts: Venue, write path and database.
    """

    def __init__(self, parts: GatewayParts) -> None:
        self._parts = parts
        name = f"venue:{parts.venue.name}"
        self._lease = Lease(parts.connect, name, this_process(), parts.settings.lease_ttl_s)
        self._tasks = Tasks(f"gateway-{parts.venue.name}")
        self._instruments: dict[str, Instrument] = {}
        self._by_venue_symbol: dict[str, Instrument] = {}
        self._epoch: _Epoch | None = None
        self._session = VenueSession(parts.venue, parts.pool)
        self._run: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()
        """Set while new orders are being sent."""
        parts.committer.listen(self._committed)

    def start(self) -> None:
        """Begin; `ready` is set once orders are sent."""
        self._run = self._tasks.start(self._live(), "live")

    async def stop(self) -> None:
        """Send nothing more, end and give the lease up; safe to call twice."""
        self.ready.clear()
        await self._tasks.stop()
        if self._epoch is not None:
            await self._epoch.end()
            self._epoch = None
        await self._lease.release()
        _leading_gauge.labels(self._parts.venue.name).set(0)

    def instrument(self, symbol: str) -> Instrument | None:
        """An instrument by our symbol."""
        return self._instruments.get(symbol)

    def served(self) -> bool:
        """Whether somebody sends orders to the venue now: this process or another."""
        return self._lease.served()

    @property
    def leading(self) -> bool:
        """Whether this process holds the lease: it sends the orders, or soon will."""
        return self._epoch is not None

    @property
    def open_orders(self) -> int:
        """How many orders it follows now."""
        return 0 if self._epoch is None else len(self._epoch.orders)

    def _committed(self, entries: Sequence[Committed]) -> None:
        """The short way from the committer: no database in between."""
        if self._epoch is not None:
            try:
                self._epoch.committed(entries)
            except Exception:  # noqa: BLE001
                # The write path must not suffer; the look into the tables finds what was lost.
                _log.exception("committed_entries_not_taken", entries=len(entries))

    async def _live(self) -> None:
        venue = self._parts.venue
        await venue.start()
        await self._learn_instruments()
        self._tasks.start(self._relearn_instruments(), "instruments")
        while True:
            await self._lease.acquire()
            _leading_gauge.labels(venue.name).set(1)
            epoch = _Epoch(self._parts, self._lease, self._session, self._instruments,
                           self._by_venue_symbol, self.ready)  # fmt: skip
            self._epoch = epoch
            try:
                await epoch.run()
            finally:
                self.ready.clear()
                self._epoch = None
                _leading_gauge.labels(venue.name).set(0)
                await epoch.end()
            await asyncio.sleep(_EPOCH_PAUSE_S)

    async def _learn_instruments(self) -> None:
        backoff = FullJitter()
        while True:
            try:
                found = await self._parts.venue.instruments()
                async with self._parts.pool.acquire() as connection:
                    await store.save_instruments(connection, found)
            except (VenueError, *DATABASE_FAULTS) as error:
                _log.warning("instruments_not_learned", error=str(error))
                await asyncio.sleep(backoff.next_s())
                continue
            self._instruments.update({each.symbol: each for each in found})
            self._by_venue_symbol.update({each.venue_symbol: each for each in found})
            self._parts.on_instruments(found)
            return

    async def _relearn_instruments(self) -> None:
        while True:
            await asyncio.sleep(_INSTRUMENTS_S)
            await self._learn_instruments()


class _Epoch:
    """One stretch of time under the lease."""

    def __init__(
        self,
        parts: GatewayParts,
        lease: Lease,
        session: VenueSession,
        instruments: dict[str, Instrument],
        by_venue_symbol: dict[str, Instrument],
        ready: asyncio.Event,
    ) -> None:
        self._parts = parts
        self._lease = lease
        self._session = session
        self._ready = ready
        self._tasks = Tasks(f"gateway-{parts.venue.name}-{lease.epoch}")
        self._stopping = False
        self._loaded = False
        self._early: list[Committed] = []
        self._began = new_id()
        self._sweep_due = asyncio.Event()
        self._resumed = asyncio.Event()
        self._resumed_before = session.resumed
        self._gap = "start"
        self.orders = OpenOrders()
        self._reports = Reports(
            parts.venue, parts.committer, parts.pool, self.orders, by_venue_symbol.get,
            self._changed, parts.settings.reports_in_flight_max, self._tasks,
        )  # fmt: skip
        self._sender = Sender(
            parts.venue, self._reports, instruments.get, self._allowed,
            parts.settings.in_flight_max, self._react, self._tasks,
        )  # fmt: skip
        self._reconciler = Reconciler(
            parts.venue, self.orders, self._reports, instruments.get, session.check,
            parts.settings, boot_s(), self._tasks,
        )  # fmt: skip

    def _allowed(self) -> bool:
        return not self._stopping and not self._session.halted and self._lease.valid()

    async def run(self) -> None:
        """Work until the lease is lost, or trading is resumed on a venue that lost its memory."""
        keeping = self._tasks.start(self._lease.keep(), "lease")
        work = self._tasks.start(self._work(), "work")
        resumed = self._tasks.start(self._resumed.wait(), "resumed")
        await asyncio.wait({keeping, work, resumed}, return_when=asyncio.FIRST_COMPLETED)
        if resumed.done():
            # Everything known here is of before; the next epoch loads and asks anew.
            _log.info("epoch_ends_with_a_resumption", epoch=self._lease.epoch)
            keeping.cancel()  # it may be renewing on the connection that the release needs
            await asyncio.wait({keeping})
            await self._lease.release()
            return
        if work.done() and not work.cancelled() and (error := work.exception()) is not None:
            _log.error("epoch_failed", epoch=self._lease.epoch, error=repr(error))
            await self._lease.release()

    async def end(self) -> None:
        """Stop everything that belongs to the epoch."""
        self._stopping = True
        self._sender.hold()
        await self._sender.drain(_DRAIN_S)
        await self._tasks.stop()

    async def _work(self) -> None:
        # Listen first: what happens while the open orders are loaded must not be missed.
        self._tasks.start(self._listen(), "user-events")
        await self._load()
        backoff = FullJitter()
        while not await self._start_sweep():
            await asyncio.sleep(backoff.next_s())
        if not self._session.halted:
            self._sender.release()
            self._ready.set()
            _log.info("gateway_ready", epoch=self._lease.epoch, open=len(self.orders))
        self._tasks.start(self._sweeps(), "sweeps")
        self._tasks.start(self._doubts(), "doubts")
        await self._look_for_orders()

    async def _load(self) -> None:
        """Everything that is open is of an earlier epoch: asked about, never sent."""
        async with self._parts.pool.acquire() as connection:
            found = await store.list_venue_open(connection, self._parts.venue.name)
        for order in found:
            self.orders.add(order, mine=False)
        self._loaded = True
        early, self._early = self._early, []
        self.committed(early)
        _log.info("open_orders_loaded", epoch=self._lease.epoch, open=len(found))

    async def _start_sweep(self) -> bool:
        try:
            await self._session.check()
        except (VenueError, *DATABASE_FAULTS) as error:
            _log.warning("venue_session_not_checked", error=str(error))
            return False
        self._resumed_before = self._session.resumed
        if self._session.halted:
            return True
        return await self._reconciler.sweep("start")

    def committed(self, entries: Sequence[Committed]) -> None:
        """Take over what the committer of this process has just made durable."""
        if not self._loaded:
            self._early.extend(entries)
            return
        for committed in entries:
            if not committed.kind.startswith("order."):
                continue
            entry = committed.entry
            data = entry.data
            if "accepted" in data:
                if data["accepted"]["venue"] == self._parts.venue.name:
                    order = Order.from_data(data["accepted"], seq=entry.seq, at=entry.at)
                    self._accepted(order, entry.by.get("request"))
                continue
            tracked = self.orders.get(UUID(data["order"]))
            if tracked is not None and entry.seq > tracked.order.seq:
                order = tracked.order.changed(data["set"], seq=entry.seq, at=entry.at)
                if "fill" in data:
                    order = order.with_trade(data["fill"]["trade_id"])
                self.orders.update(order)
                self._react(tracked)

    def _changed(self, order: Order) -> None:
        """A command of ours changed an order."""
        tracked = self.orders.get(order.id)
        self.orders.update(order)
        if tracked is not None:
            self._react(tracked)

    def _accepted(self, order: Order, request: str | None) -> None:
        """Take in an order that this process has accepted.

        What the load did not find was accepted after it, under our lease. What it did find may be
        older than the lease, and then another holder may have sent it; unless its id was made
        here after we had the lease (ids of one process never go back).
        """
        tracked = self.orders.get(order.id)
        if tracked is not None and order.id > self._began:
            tracked.mine = True
        self._take(order, mine=True, request=request)

    def _take(self, order: Order, *, mine: bool, request: str | None = None) -> None:
        tracked = self.orders.add(order, mine=mine)
        if tracked is not None:
            tracked.request = request or tracked.request
            self._react(tracked)

    def _react(self, tracked: Tracked) -> None:
        """Do what an order needs next."""
        if tracked.order.final:
            tracked.doubt = None
        elif tracked.sendable:
            self._sender.offer(tracked)
        elif tracked.doubtful:
            self._reconciler.watch(tracked)
        else:
            self._sender.cancel(tracked)

    async def _listen(self) -> None:
        events = cast("AsyncGenerator[UserEvent]", self._parts.venue.user_events())
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, OrderReport):
                    await self._reports.submit(event)
                elif isinstance(event, StreamGap):
                    self._gap = event.why
                    self._sweep_due.set()

    async def _sweeps(self) -> None:
        """Compare open orders after every gap of the stream, and from time to time."""
        backoff = FullJitter(base_s=0.5, cap_s=10.0)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._parts.settings.open_orders_interval_s):
                    await self._sweep_due.wait()
            why = self._gap if self._sweep_due.is_set() else "interval"
            self._sweep_due.clear()
            try:
                same = await self._session.check()
            except (VenueError, *DATABASE_FAULTS) as error:
                _log.warning("venue_session_not_checked", error=str(error))
                same = False
            if self._session.resumed != self._resumed_before:
                self._resumed.set()
                return
            if self._session.halted:
                self._ready.clear()
                self._sender.hold()
            if same and await self._reconciler.sweep(why):
                backoff.reset()
            elif not self._session.halted:
                self._sweep_due.set()
                await asyncio.sleep(backoff.next_s())

    async def _doubts(self) -> None:
        looked_s = 0.0
        while True:
            if not self._session.halted:
                self._reconciler.ask_due()
            elif boot_s() - looked_s >= _HALTED_LOOK_S:
                # Somebody may have resumed trading.
                looked_s = boot_s()
                self._gap = "halted"
                self._sweep_due.set()
            await asyncio.sleep(min(0.25, self._parts.settings.unknown_interval_s))

    async def _look_for_orders(self) -> None:
        """Find what other processes accepted, and whatever a lost wake-up would have told."""
        venue = self._parts.venue.name
        looked_s = 0.0
        with self._parts.bus.listening(f"orders:{venue}") as woken:
            while True:
                try:
                    await self._look()
                except DATABASE_FAULTS as error:
                    _log.warning("orders_not_read", error=repr(error))
                if boot_s() - looked_s >= _SWEEP_S:
                    looked_s = boot_s()
                    self._sender.expire()
                    for tracked in self.orders:
                        if not tracked.placing:
                            self._react(tracked)
                    _open_gauge.labels(venue).set(len(self.orders))
                await asyncio.sleep(_LOOK_S_MIN)
                await wait_for_wake(woken, _SWEEP_S - _LOOK_S_MIN)

    async def _look(self) -> None:
        async with self._parts.pool.acquire() as connection:
            rows: list[Any] = await connection.fetch(_UNSETTLED_SQL, self._parts.venue.name)
            for row in rows:
                tracked = self.orders.get(row["id"])
                if tracked is None or tracked.order.seq < row["seq"]:
                    order, request = await store.get_order(connection, row["id"]), None
                    if tracked is None and heard(logging.INFO):
                        # Of another process: only the journal knows what is to be logged with it.
                        request = await store.placed_under(connection, order)
                    self._take(order, mine=True, request=request)
