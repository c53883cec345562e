"""From what a venue says to the journal: every report becomes a command, however long it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import asyncpg
import structlog
from prometheus_client import Counter

from tbot.core.errors import NotFound, OutcomeUnknown, Unavailable, VenueError
from tbot.core.ids import new_id, order_id_of
from tbot.core.refusals import Refused
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.gateway.tracked import OpenOrders, tells_news
from tbot.journal.commands import GATEWAY, Command
from tbot.journal.committer import Committer
from tbot.orders import reconcile, store
from tbot.orders.model import Order, State
from tbot.orders.reports import AdoptOrder, Applied, ApplyReport
from tbot.venues.backoff import FullJitter
from tbot.venues.base import Instrument, OrderReport, Venue, VenueStatus

_log = structlog.get_logger(__name__)

_FILLS_DELAY_S: Final = 0.25

_reports_total = Counter("tbot_gateway_reports", "Reports by what they were.", ["kind"])


class Reports:
    """Applies reports to orders.

    Args:
        instruments: By the venue's symbol.
        changed: Called with every new version of an order.
        under_way_max: Reports being written down at once; `submit` waits for room.
    """

    def __init__(
        self,
        venue: Venue,
        committer: Committer,
        pool: asyncpg.Pool[asyncpg.Record],
        orders: OpenOrders,
        instruments: Callable[[str], Instrument | None],
        changed: Callable[[Order], None],
        under_way_max: int,
        tasks: Tasks,
    ) -> None:
        self._venue = venue
        self._committer = committer
        self._pool = pool
        self._orders = orders
        self._instruments = instruments
        self._changed = changed
        self._tasks = tasks
        self._room = asyncio.Semaphore(under_way_max)
        self._inboxes: dict[str, list[OrderReport]] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._fetching: dict[UUID, OrderReport] = {}

    async def commit(self, command: Command[Applied]) -> Applied | None:
        """Make a fact durable, however long the database is away.

        All of the gateway's commands may be repeated, so a lost answer is simply asked for again.

        Returns:
            What became of the order; None when there is no such order.
        """
        backoff = FullJitter(base_s=0.05, cap_s=2.0)
        while True:
            try:
                outcome = await self._committer.commit(command)
            except (Unavailable, OutcomeUnknown) as error:
                _log.warning("report_waits", command=type(command).__name__, error=str(error))
                await asyncio.sleep(backoff.next_s())
                continue
            if isinstance(outcome, Refused):
                _log.error("report_refused", command=repr(command), reason=outcome.reason)
                return None
            self._changed(outcome.result.order)
            return outcome.result

    async def submit(self, report: OrderReport) -> None:
        """Apply a report in the background; waits only while too many orders have some."""
        if self._known_already(report):
            return
        if report.client_id in self._workers:
            self._inboxes[report.client_id].append(report)
            return
        await self._room.acquire()
        self._deliver(report).add_done_callback(lambda _: self._room.release())

    async def apply(self, report: OrderReport) -> None:
        """Apply a report to the order that it is about, and fetch executions that it lacks."""
        await asyncio.shield(self._deliver(report))

    def _deliver(self, report: OrderReport) -> asyncio.Task[None]:
        """Put a report into its order's inbox; the task that empties it.

        An order's acknowledgement, its execution and the answer to its placement usually arrive
        together; they become one command, and its reports are never applied side by side.
        """
        client_id = report.client_id
        self._inboxes.setdefault(client_id, []).append(report)
        worker = self._workers.get(client_id)
        if worker is None:
            worker = self._tasks.start(self._empty(client_id), "reports")
            self._workers[client_id] = worker
        return worker

    async def _empty(self, client_id: str) -> None:
        inbox = self._inboxes[client_id]
        try:
            await asyncio.sleep(0)  # whatever was read from the socket with it comes along
            while inbox:
                report = reconcile.merged(inbox)
                inbox.clear()
                if not self._known_already(report):
                    try:
                        await self._apply(report)
                    except Exception:
                        # A bug, or text that the database refuses. Later reports go on; this
                        # one is in the log, and the next comparison asks for it again.
                        _log.exception("report_failed", report=repr(report))
                        if not inbox:
                            raise
        finally:
            del self._inboxes[client_id], self._workers[client_id]

    def _known_already(self, report: OrderReport) -> bool:
        tracked = self._orders.find(report.client_id)
        order = self._orders.ended(report.client_id) if tracked is None else tracked.order
        known = (
            order is not None and not tells_news(order, report) and not _resurrects(order, report)
        )
        if known:
            _reports_total.labels("repeated").inc()
        return known

    async def _apply(self, report: OrderReport) -> None:
        order = await self._order(report)
        if order is None:
            _reports_total.labels("external").inc()
            _log.info(
                "external_order",
                venue=self._venue.name,
                client_id=report.client_id,
                venue_order_id=report.venue_order_id,
                status=report.status,
            )
            return
        if _resurrects(order, report):
            adopted = await self._adopt(order, report)
            if adopted is None:
                return
            order = adopted
        _reports_total.labels("applied").inc()
        applied = await self.commit(
            ApplyReport(new_id(), GATEWAY, order.account_id, order.id, report)
        )
        if applied is not None and applied.fills_missing:
            self._fetch_fills(applied.order, report)

    async def _order(self, report: OrderReport) -> Order | None:
        tracked = self._orders.find(report.client_id)
        if tracked is not None:
            return tracked.order
        order_id = order_id_of(report.client_id)
        if order_id is None:
            return None
        ended = self._orders.ended(report.client_id)
        if ended is not None and not _resurrects(ended, report):
            return ended
        backoff = FullJitter(base_s=0.05, cap_s=2.0)
        while True:
            try:
                return await self._stored(order_id)
            except DATABASE_FAULTS as error:  # a fact must not be dropped because of an outage
                _log.warning("report_waits", command="find the order", error=repr(error))
                await asyncio.sleep(backoff.next_s())

    async def _stored(self, order_id: UUID) -> Order | None:
        async with self._pool.acquire() as connection:
            adopted = await store.find_external(connection, order_id)
            if adopted is not None:
                return adopted
            try:
                return await store.get_order(connection, order_id)
            except NotFound:
                return None

    async def _adopt(self, order: Order, report: OrderReport) -> Order | None:
        """Give an order that was taken for absent a linked one that lives."""
        _reports_total.labels("adopted").inc()
        _log.error(
            "order_landed_late",
            order=str(order.id),
            account=str(order.account_id),
            venue_order_id=report.venue_order_id,
            status=report.status,
        )
        # Made from the parent's id: two reports that race adopt one order, not two.
        adopted_id = UUID(int=order.id.int ^ 1)
        applied = await self.commit(
            AdoptOrder(
                new_id(), GATEWAY, order.account_id, adopted_id, order.id, report.venue_order_id
            )
        )
        if applied is None:
            return None
        self._orders.add(applied.order, mine=False)
        return applied.order

    def _fetch_fills(self, order: Order, report: OrderReport) -> None:
        """Fetch an order's executions; one task per order, for the report that claims most."""
        known = self._fetching.get(order.id)
        if known is None:
            self._fetching[order.id] = report
            self._tasks.start(self._fetch(order), "fills")
        elif report.executed_quantity >= known.executed_quantity:
            self._fetching[order.id] = report

    async def _fetch(self, order: Order) -> None:
        backoff = FullJitter(base_s=0.5, cap_s=10.0)
        # The stream usually brings them in a moment.
        await asyncio.sleep(_FILLS_DELAY_S)
        try:
            while True:
                report = self._fetching[order.id]
                instrument = self._instruments(report.venue_symbol)
                if instrument is None:
                    _log.error("instrument_unknown", symbol=report.venue_symbol)
                    return
                try:
                    fills = await self._venue.order_fills(instrument, report.venue_order_id)
                except VenueError as error:
                    _log.info("fills_not_fetched", order=str(order.id), error=str(error))
                else:
                    applied = await self.commit(
                        ApplyReport(
                            new_id(),
                            GATEWAY,
                            order.account_id,
                            order.id,
                            replace(report, fills=tuple(fills)),
                        )
                    )
                    if applied is None or not applied.fills_missing:
                        if self._fetching[order.id] is report:
                            return
                        continue
                await asyncio.sleep(backoff.next_s())
        finally:
            self._fetching.pop(order.id, None)


def _resurrects(order: Order, report: OrderReport) -> bool:
    """Whether a report shows an order alive that was given up as never sent or never landed."""
    return (
        order.state is State.REJECTED
        and order.venue_order_id is None
        and (report.status is not VenueStatus.REJECTED or report.executed_quantity > 0)
    )


def describe(error: Any) -> str:
    """An error in the words that an order's reason keeps."""
    code = getattr(error, "code", "")
    return f"{code}: {error}" if code else str(error)
