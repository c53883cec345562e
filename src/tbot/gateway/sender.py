"""Placements and cancels: each placement at most once, nothing after its send-by time.

A placement goes out when the lease is held, the order was accepted under it, and `send_by` is
ahead; all of that is checked once more by `may_send` in the very stretch that signs and writes.
`VenueNotSent` is the only outcome after which the same order may be tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog
from prometheus_client import Counter, Histogram

from tbot.core.clock import boot_s
from tbot.core.errors import (
    VenueAmbiguous,
    VenueDown,
    VenueError,
    VenueNotSent,
    VenueRateLimited,
    VenueRefused,
)
from tbot.core.ids import new_id
from tbot.core.log import heard
from tbot.core.tasks import Tasks
from tbot.gateway.reports import Reports, describe
from tbot.gateway.tracked import Tracked
from tbot.journal.commands import GATEWAY
from tbot.orders.model import Order
from tbot.orders.reports import KeepOrder, MarkUnknown, RejectOrder
from tbot.venues.base import Instrument, OrderReport, Placement, Venue

_log = structlog.get_logger(__name__)

_RETRY_S: Final = 0.05
_CANCEL_RETRY_S: Final = 0.5
_CANCEL_RETRY_S_MAX: Final = 15.0
_CANCELS_MAX: Final = 8

_placements_total = Counter("tbot_gateway_placements", "Placements by outcome.", ["outcome"])
_cancels_total = Counter("tbot_gateway_cancels", "Cancels by outcome.", ["outcome"])
_answer_time = Histogram(
    "tbot_gateway_placement_seconds",
    "From handing an order to the venue's connection to its answer.",
    buckets=[0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1, 5, 15],
)


class Sender:
    """Sends what has to be sent.

    Args:
        instruments: By our symbol.
        allowed: Whether anything may be sent now: lease held, not halted, not stopping.
        in_flight_max: Placements under way at once; the others wait in the order they came.
        done: Called when a request for an order has ended, to see what is next.
    """

    def __init__(
        self,
        venue: Venue,
        reports: Reports,
        instruments: Callable[[str], Instrument | None],
        allowed: Callable[[], bool],
        in_flight_max: int,
        done: Callable[[Tracked], None],
        tasks: Tasks,
    ) -> None:
        self._done = done
        self._venue = venue
        self._reports = reports
        self._instruments = instruments
        self._allowed = allowed
        self._in_flight_max = in_flight_max
        self._tasks = tasks
        # Durable orders only, each leaves by its send-by time: bounded by what is accepted until.
        self._waiting: deque[Tracked] = deque()
        self._in_flight = 0
        self._held = True

    def hold(self) -> None:
        """Send no new orders for now; what waits may run out of time."""
        self._held = True

    def release(self) -> None:
        """Send again."""
        self._held = False
        self._pump()

    def offer(self, tracked: Tracked) -> None:
        """Take an order that is `sendable`."""
        tracked.placing = True
        self._waiting.append(tracked)
        self._pump()

    async def drain(self, timeout_s: float) -> None:
        """Wait for the answers to what is under way."""
        until_s = boot_s() + timeout_s
        while self._in_flight and boot_s() < until_s:
            await asyncio.sleep(0.01)

    def expire(self) -> None:
        """Give up what waited too long; called about once a second."""
        now_s = boot_s()
        late = [tracked for tracked in self._waiting if tracked.send_by_s <= now_s]
        if late:
            self._waiting = deque(t for t in self._waiting if t.send_by_s > now_s)
            for tracked in late:
                self._tasks.start(self._never_sent(tracked, "send-by time passed"), "never-sent")

    def _pump(self) -> None:
        while self._waiting and self._in_flight < self._in_flight_max and not self._held:
            tracked = self._waiting.popleft()
            self._in_flight += 1
            self._tasks.start(self._send(tracked), "place")

    async def _send(self, tracked: Tracked) -> None:
        try:
            await self._place(tracked)
        finally:
            self._in_flight -= 1
            self._pump()
            if not tracked.placing:
                self._done(tracked)

    async def _place(self, tracked: Tracked) -> None:
        """Place one order, and write down what became of it."""
        order = tracked.order
        instrument = self._instruments(order.symbol)
        if instrument is None:
            await self._never_sent(tracked, f"the venue has no {order.symbol}")
            return

        def may_send() -> bool:
            allowed = (
                self._allowed()
                and boot_s() < tracked.send_by_s
                and not tracked.order.cancel_requested
                and not tracked.order.final
            )
            tracked.attempted = tracked.attempted or allowed
            return allowed

        started_s = boot_s()
        try:
            report = await self._venue.place(placement_of(order, instrument), may_send)
        except VenueNotSent as error:
            tracked.attempted = False
            await self._not_sent(tracked, error)
        except (VenueRefused, VenueRateLimited) as error:
            _placements_total.labels("refused").inc()
            self._tell("order_sent", tracked, "refused", started_s)
            await self._reject(tracked, "venue_refused", describe(error))
        except VenueAmbiguous as error:
            _placements_total.labels("unknown").inc()
            self._tell("order_sent", tracked, "unknown", started_s)
            await self._doubt(tracked, describe(error))
        except Exception as error:  # noqa: BLE001
            # A bug of ours. If the request may have left, its outcome is unknown like any other.
            _log.exception("placement_failed", order=str(order.id))
            if tracked.attempted:
                await self._doubt(tracked, f"internal error: {type(error).__name__}")
            else:
                await self._reject(tracked, "never_sent", f"internal error: {type(error).__name__}")
        else:
            _placements_total.labels("answered").inc()
            _answer_time.observe(boot_s() - started_s)
            self._tell("order_sent", tracked, "answered", started_s)
            tracked.placing = False
            await self._reports.apply(report)

    def _tell(self, event: str, tracked: Tracked, outcome: str, started_s: float) -> None:
        """Log one call to the venue: what ties a request's events and journal entries to it."""
        if not heard(logging.INFO):
            return
        fields = {} if tracked.request is None else {"request_id": tracked.request}
        _log.info(
            event,
            venue=self._venue.name,
            order=str(tracked.order.id),
            client_id=tracked.client_id,
            outcome=outcome,
            duration_ms=round((boot_s() - started_s) * 1000, 3),
            **fields,
        )

    async def _not_sent(self, tracked: Tracked, error: VenueNotSent) -> None:
        """Nothing left this process: try again while there is time."""
        order = tracked.order
        if order.final:
            tracked.placing = False
        elif order.cancel_requested:
            await self._never_sent(tracked, "canceled before it was sent")
        elif boot_s() >= tracked.send_by_s:
            await self._never_sent(tracked, f"send-by time passed ({error.code or error})")
        else:
            _placements_total.labels("delayed").inc()
            await asyncio.sleep(_RETRY_S)
            self._waiting.append(tracked)

    async def _never_sent(self, tracked: Tracked, why: str) -> None:
        _placements_total.labels("never_sent").inc()
        await self._reject(tracked, "never_sent", why)

    async def _reject(self, tracked: Tracked, reason: str, evidence: str) -> None:
        order = tracked.order
        try:
            await self._reports.commit(
                RejectOrder(new_id(), GATEWAY, order.account_id, order.id, reason, evidence)
            )
        finally:
            tracked.placing = False

    async def _doubt(self, tracked: Tracked, why: str) -> None:
        order = tracked.order
        _log.warning("placement_unknown", order=str(order.id), why=why)
        try:
            await self._reports.commit(
                MarkUnknown(new_id(), GATEWAY, order.account_id, order.id, why)
            )
        finally:
            tracked.placing = False

    def cancel(self, tracked: Tracked) -> None:
        """Ask the venue to cancel, if it is wanted and possible now.

        An order that the venue has not shown yet is left alone: "unknown order" would prove
        nothing, and the wish is carried out as soon as the order is found.
        """
        order = tracked.order
        if (
            order.cancel_requested
            and tracked.confirmed
            and not order.final
            and not tracked.placing
            and not tracked.canceling
            and boot_s() >= tracked.cancel_after_s
        ):
            tracked.canceling = True
            self._tasks.start(self._cancel(tracked), "cancel")

    async def _cancel(self, tracked: Tracked) -> None:
        order = tracked.order
        tracked.cancels += 1
        started_s = boot_s()
        try:
            instrument = self._instruments(order.symbol)
            if instrument is None:
                return
            try:
                report = await self._venue.cancel(order.venue_client_id, instrument, self._allowed)
            except VenueRefused as error:
                _cancels_total.labels(error.code or "refused").inc()
                self._tell("cancel_sent", tracked, "refused", started_s)
                await self._cancel_refused(tracked, instrument, error)
            except (VenueNotSent, VenueRateLimited) as error:
                _cancels_total.labels("delayed").inc()
                tracked.cancels -= 1
                _log.info("cancel_delayed", order=str(order.id), why=describe(error))
            except VenueError as error:
                _cancels_total.labels("unknown").inc()
                _log.warning("cancel_unknown", order=str(order.id), why=describe(error))
                await self._ask(order, instrument)
            else:
                _cancels_total.labels("answered").inc()
                self._tell("cancel_sent", tracked, "answered", started_s)
                await self._reports.apply(report)
        finally:
            delay_s = min(_CANCEL_RETRY_S_MAX, _CANCEL_RETRY_S * 2 ** max(0, tracked.cancels - 1))
            tracked.cancel_after_s = boot_s() + delay_s
            tracked.canceling = False

    async def _cancel_refused(
        self, tracked: Tracked, instrument: Instrument, error: VenueRefused
    ) -> None:
        """No open order of this id, or a no to canceling it: only the order itself can tell."""
        report = await self._ask(tracked.order, instrument)
        order = tracked.order
        if order.final:
            return
        if report is None:
            _log.warning("cancel_unresolved", order=str(order.id), why=describe(error))
            return  # asked again later: the venue had confirmed the order, so it exists
        # It lives. "Unknown order" may be a lagging answer; any other no is meant.
        if error.code != "unknown_order" or tracked.cancels >= _CANCELS_MAX:
            await self._reports.commit(
                KeepOrder(new_id(), GATEWAY, order.account_id, order.id, describe(error))
            )
            tracked.cancels = 0

    async def _ask(self, order: Order, instrument: Instrument) -> OrderReport | None:
        """Query an order and apply the answer; None without one."""
        try:
            report = await self._venue.query(order.venue_client_id, instrument)
        except (VenueDown, VenueError) as error:
            _log.info("query_failed", order=str(order.id), error=str(error))
            return None
        if report is not None:
            await self._reports.apply(report)
        return report


def placement_of(order: Order, instrument: Instrument) -> Placement:
    """An order as it goes to the venue."""
    return Placement(
        client_id=order.venue_client_id,
        instrument=instrument,
        side=order.side,
        type=order.type,
        time_in_force=order.time_in_force,
        quantity=order.quantity,
        quote_amount=order.quote_amount,
        price=order.limit_price,
        post_only=order.post_only,
    )
