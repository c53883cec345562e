"""Finds out what became of orders: doubts one by one, and everything at once after a gap.

The decisions are in `tbot.orders.reconcile`; here are the questions. What the venue answers is
applied like any report. A question that fails is asked again; it never counts as an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Final
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge

from tbot.core.clock import boot_s, unstamp
from tbot.core.errors import VenueError
from tbot.core.ids import new_id
from tbot.core.settings import GatewaySettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.gateway.reports import Reports
from tbot.gateway.tracked import OpenOrders, Tracked
from tbot.journal.commands import GATEWAY
from tbot.orders import reconcile
from tbot.orders.model import Order
from tbot.orders.reconcile import Question
from tbot.orders.reports import RejectOrder
from tbot.venues.base import Instrument, OrderReport, Venue

_log = structlog.get_logger(__name__)

_SEARCH_SLACK: Final = timedelta(minutes=1)

_doubts_gauge = Gauge("tbot_gateway_doubtful_orders", "Orders whose placement is in doubt.")
_verdicts_total = Counter("tbot_gateway_verdicts", "How doubts ended.", ["verdict"])
_sweeps_total = Counter("tbot_gateway_sweeps", "Comparisons of open orders.", ["outcome"])


class Reconciler:
    """Asks the venue about orders.

    Args:
        instruments: By our symbol.
        same_session: Whether the venue is the one that we traded on; when it lost its memory its
            "no such order" means nothing.
        epoch_began_s: When this process took the lease (boot clock): another one may have signed
            orders until then.
    """

    def __init__(
        self,
        venue: Venue,
        orders: OpenOrders,
        reports: Reports,
        instruments: Callable[[str], Instrument | None],
        same_session: Callable[[], Awaitable[bool]],
        settings: GatewaySettings,
        epoch_began_s: float,
        tasks: Tasks,
    ) -> None:
        self._venue = venue
        self._orders = orders
        self._reports = reports
        self._instruments = instruments
        self._same_session = same_session
        self._settings = settings
        self._epoch_began_s = epoch_began_s
        self._tasks = tasks
        self._asked: set[UUID] = set()
        self._asking = asyncio.Semaphore(settings.questions_in_flight_max)

    def deadline_s(self, tracked: Tracked) -> float:
        """When "no such order" begins to count for an order."""
        last_signed_s = tracked.send_by_s
        if not tracked.mine:
            last_signed_s = max(last_signed_s, self._epoch_began_s)
        return reconcile.deadline_s(
            last_signed_s,
            self._settings.receive_window_ms / 1000,
            self._venue.capabilities.engine_timeout_s,
            self._settings.absence_margin_s,
        )

    def watch(self, tracked: Tracked) -> None:
        """Begin to doubt an order, if it is doubtful and not doubted yet."""
        if tracked.doubtful and tracked.doubt is None:
            tracked.doubt = reconcile.begin(
                boot_s(), self.deadline_s(tracked), self._settings.unknown_interval_s
            )

    def ask_due(self) -> None:
        """Ask every question that is due, in the background."""
        doubtful = [tracked for tracked in self._orders if tracked.doubt is not None]
        _doubts_gauge.set(len(doubtful))
        now_s = boot_s()
        # The others' turn comes with an answer: a task for each of thousands would keep the lease
        # from being renewed.
        room = 2 * self._settings.questions_in_flight_max - len(self._asked)
        for tracked in doubtful:
            if room <= 0:
                break
            doubt, order_id = tracked.doubt, tracked.order.id
            if doubt is not None and doubt.next_s <= now_s and order_id not in self._asked:
                room -= 1
                self._asked.add(order_id)
                task = self._tasks.start(self._ask(tracked), "question")
                task.add_done_callback(partial(self._answered, order_id))

    def _answered(self, order_id: UUID, _task: object) -> None:
        self._asked.discard(order_id)

    async def _ask(self, tracked: Tracked) -> None:
        async with self._asking:
            doubt = tracked.doubt
            if doubt is None or not tracked.doubtful:
                tracked.doubt = None
                return
            order = tracked.order
            instrument = self._instruments(order.symbol)
            if instrument is None:
                tracked.doubt = reconcile.failed(doubt, boot_s(), self._interval_s)
                return
            asked_at_s = boot_s()
            try:
                report = await self._question(doubt.question, order, instrument)
            except VenueError as error:
                _log.debug("question_failed", order=str(order.id), error=str(error))
                tracked.doubt = reconcile.failed(doubt, boot_s(), self._interval_s)
                return
            if report is not None:
                tracked.doubt = None
                _verdicts_total.labels("found").inc()
                _log.info("order_found", order=str(order.id), status=report.status)
                await self._reports.apply(report)
                return
            left = reconcile.denied(doubt, asked_at_s, boot_s(), self._interval_s)
            if left is not None:
                tracked.doubt = left
            elif tracked.order.final or tracked.confirmed:
                tracked.doubt = None  # a report came in while we asked
            else:
                await self._give_up(tracked)
        if left is not None and left.question is Question.EVERYWHERE:
            await self._ask(tracked)

    async def _question(
        self, question: Question, order: Order, instrument: Instrument
    ) -> OrderReport | None:
        client_id = order.venue_client_id
        if question is Question.BY_ID:
            return await self._venue.query(client_id, instrument)
        since = unstamp(order.created_at) - _SEARCH_SLACK
        return await self._venue.search(client_id, instrument, since)

    async def _give_up(self, tracked: Tracked) -> None:
        """The venue proved that the order is not there, provided it is the venue we know."""
        order = tracked.order
        doubt = tracked.doubt
        assert doubt is not None
        try:
            believable = self._venue.capabilities.request_expiry and await self._same_session()
        except (VenueError, *DATABASE_FAULTS):
            believable = False
        if not believable:
            tracked.doubt = reconcile.failed(doubt, boot_s(), self._interval_s)
            return
        _verdicts_total.labels("absent").inc()
        evidence = (
            "the venue denied it by id and in open orders, all orders and trades, "
            f"{boot_s() - tracked.send_by_s:.0f} s after its send-by time"
        )
        _log.warning("order_never_landed", order=str(order.id), evidence=evidence)
        tracked.doubt = None
        await self._reports.commit(
            RejectOrder(new_id(), GATEWAY, order.account_id, order.id, "never_landed", evidence)
        )

    async def sweep(self, why: str) -> bool:
        """Compare all open orders with the venue's.

        Returns:
            False when something could not be asked: sweep again.
        """
        before = list(self._orders)
        try:
            live = await self._venue.open_orders()
        except VenueError as error:
            _log.warning("sweep_failed", why=why, error=str(error))
            _sweeps_total.labels("failed").inc()
            return False
        for report in live:
            await self._reports.submit(report)
        listed = {report.client_id for report in live}
        gone = [
            tracked
            for tracked in before
            if tracked.client_id not in listed
            and not tracked.order.final
            and not tracked.placing
            and not tracked.sendable
        ]
        rest = iter(gone)
        lookers = range(min(len(gone), self._settings.questions_in_flight_max))
        complete = all(await asyncio.gather(*(self._look_at(rest) for _ in lookers)))
        _log.info("swept", why=why, open=len(live), asked=len(gone), complete=complete)
        _sweeps_total.labels("complete" if complete else "partial").inc()
        return complete

    async def _look_at(self, rest: Iterator[Tracked]) -> bool:
        """Look for one order after the other; a few do so side by side, however many there are."""
        complete = True
        for tracked in rest:
            try:
                complete = await self._look(tracked) and complete
            except Exception:  # noqa: BLE001 - one order's trouble must not stop the others
                _log.exception("order_not_compared", order=str(tracked.order.id))
            await asyncio.sleep(0)  # also where nothing had to be asked
        return complete

    async def _look(self, tracked: Tracked) -> bool:
        """Ask for an order that the list of open ones lacks."""
        async with self._asking:
            order = tracked.order
            instrument = self._instruments(order.symbol)
            if order.final or instrument is None:
                return True
            try:
                report = await self._venue.query(order.venue_client_id, instrument)
            except VenueError as error:
                _log.debug("question_failed", order=str(order.id), error=str(error))
                return False
        if report is not None:
            await self._reports.apply(report)
        elif tracked.confirmed:
            # It was there. Either the venue's answer lags, or the venue lost its memory: in both
            # cases the order stays what it is, and somebody should look.
            _log.error("confirmed_order_denied", order=str(order.id), venue=self._venue.name)
        else:
            self.watch(tracked)
        return True

    @property
    def _interval_s(self) -> float:
        return self._settings.unknown_interval_s
