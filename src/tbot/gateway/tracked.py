"""The open orders of one venue as the gateway has them in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from typing import Final
from uuid import UUID

from tbot.core.clock import boot_s, unstamp, utc_now
from tbot.orders.model import Order, State
from tbot.orders.reconcile import Doubt
from tbot.venues.base import OrderReport, VenueStatus

_RECENT_MAX: Final = 10_000
# An order that T-Bot itself holds until its trigger has no placement to doubt.
_UNPLACED: Final = frozenset({State.PENDING_NEW, State.PENDING_CANCEL, State.UNKNOWN})
_ENDED: Final = frozenset(
    {VenueStatus.FILLED, VenueStatus.CANCELED, VenueStatus.REJECTED, VenueStatus.EXPIRED}
)


class Tracked:
    """An open order and what the gateway is doing about it.

    Attributes:
        order: Its newest version known here.
        client_id: The id that the venue knows it by.
        mine: It was accepted while this process held the lease, so that nobody else can have sent
            it, and it may be sent. Whatever was found at the start is only ever asked about.
        attempted: Its placement may have been written.
        placing, canceling: A request is under way.
        cancel_after_s: No cancel before this instant.
        cancels: How many were tried without success.
        doubt: The questions about it, while its placement is in doubt.
        request: Of whoever placed it, for logs; None for what was open before this epoch, and what
            was changed before it was seen here.
    """

    __slots__ = (
        "attempted", "cancel_after_s", "canceling", "cancels", "client_id", "doubt", "mine",
        "order", "placing", "request", "send_by_s",
    )  # fmt: skip

    def __init__(self, order: Order, *, mine: bool) -> None:
        self.order = order
        self.client_id = order.venue_client_id
        self.mine = mine
        self.attempted = False
        self.placing = False
        self.canceling = False
        self.cancel_after_s = 0.0
        self.cancels = 0
        self.doubt: Doubt | None = None
        self.request: str | None = None
        self.send_by_s = boot_of(unstamp(order.send_by))

    @property
    def confirmed(self) -> bool:
        """Whether the venue has ever shown that it has the order."""
        return self.order.venue_order_id is not None

    @property
    def sendable(self) -> bool:
        """Whether it still has to be sent, by us."""
        return (
            self.mine
            and not self.attempted
            and not self.placing
            and not self.confirmed
            and self.order.state in (State.PENDING_NEW, State.PENDING_CANCEL)
        )

    @property
    def doubtful(self) -> bool:
        """Whether its placement's outcome has to be asked for."""
        return (
            self.order.state in _UNPLACED
            and not self.confirmed
            and not self.placing
            and (self.attempted or not self.mine or self.order.state is State.UNKNOWN)
        )


def boot_of(at: datetime) -> float:
    """The boot clock's reading at an instant of wall time."""
    return boot_s() + (at - utc_now()).total_seconds()


def tells_news(order: Order, report: OrderReport) -> bool:
    """Whether a report can change what is known of an order; most are heard two or three times."""
    if report.executed_quantity > order.filled_quantity:
        return True
    if any(fill.trade_id not in order.trade_ids for fill in report.fills):
        return True
    if order.final:
        return False
    return (
        report.status in _ENDED
        or order.venue_order_id is None
        or order.state in (State.PENDING_NEW, State.UNKNOWN)
    )


class OpenOrders:
    """Open orders by id and by the client id the venue knows, and the latest that ended.

    Open orders are bounded by the accounts' own limits; of ended ones 10,000 are kept.
    """

    def __init__(self) -> None:
        self._open: dict[UUID, Tracked] = {}
        self._by_client_id: dict[str, Tracked] = {}
        self._ended: OrderedDict[str, Order] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Tracked]:
        return iter(list(self._open.values()))

    def get(self, order_id: UUID) -> Tracked | None:
        """An open order."""
        return self._open.get(order_id)

    def find(self, client_id: str) -> Tracked | None:
        """An open order by the id that the venue knows."""
        return self._by_client_id.get(client_id)

    def ended(self, client_id: str) -> Order | None:
        """An order that ended lately."""
        return self._ended.get(client_id)

    def add(self, order: Order, *, mine: bool) -> Tracked | None:
        """Take an order in, if it is open and newer than what is known; None when it is final."""
        tracked = self._open.get(order.id)
        if tracked is None:
            if order.final:
                self._remember(order, order.venue_client_id)
                return None
            tracked = Tracked(order, mine=mine)
            if tracked.client_id in self._ended and order.parent_id is None:
                return None  # an older version of an order that ended meanwhile
            self._open[order.id] = tracked
            self._by_client_id[tracked.client_id] = tracked
        self.update(order)
        return self._open.get(order.id)

    def update(self, order: Order) -> None:
        """Take over a newer version of an order."""
        tracked = self._open.get(order.id)
        if tracked is None:
            if order.final:
                self._remember(order, order.venue_client_id)
            return
        if order.seq >= tracked.order.seq:
            tracked.order = order
            if order.final:
                del self._open[order.id]
                self._by_client_id.pop(tracked.client_id, None)
                self._remember(order, tracked.client_id)

    def _remember(self, order: Order, client_id: str) -> None:
        known = self._ended.get(client_id)
        if known is None or known.id != order.id or order.seq >= known.seq:
            self._ended[client_id] = order
        while len(self._ended) > _RECENT_MAX:
            self._ended.popitem(last=False)
