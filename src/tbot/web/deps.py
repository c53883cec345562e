"""What the edge is built from; `boot` makes one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import InitVar, dataclass, field

from tbot.auth.flow import Auth
from tbot.auth.store import Pool
from tbot.core.settings import Settings
from tbot.core.valkey import Valkey
from tbot.ledger.payments_flow import PaymentDesk
from tbot.ledger.permissions import Permissions
from tbot.market.candle_feed import CandleFeed
from tbot.market.feed import MarketFeed
from tbot.market.status import StatusBoard
from tbot.orders.flow import OrderDesk
from tbot.web.stream import Streams
from tbot.web.tickers import SharedTickers

type Check = Callable[[], Awaitable[str | None]]
"""Answers None when its part is ready, else a few words on why not."""


@dataclass(frozen=True, slots=True)
class Deps:
    """The parts of the program that the edge talks to.

    Attributes:
        pool: For reads; short transactions only.
        orders: With the account desk and the instruments in it.
        feeds: Live market data, by venue.
        streams: Serves `/v1/stream`; None leaves the endpoint out.
        checks: By name, what has to be ready for `/health/ready`.
        payments: None takes no payments.
        candles: Live candles, by venue.
        statuses: How each venue's markets are, by venue.
        valkey: Shared with other processes; None keeps to this one.
        tickers: What other processes hear of markets; None without Valkey.
        given_permissions: Roles on shared accounts; None takes the streams', or makes some.
    """

    settings: Settings
    pool: Pool
    auth: Auth
    orders: OrderDesk
    feeds: Mapping[str, MarketFeed] = field(default_factory=dict)
    streams: Streams | None = None
    checks: Mapping[str, Check] = field(default_factory=dict)
    payments: PaymentDesk | None = None
    candles: Mapping[str, CandleFeed] = field(default_factory=dict)
    statuses: Mapping[str, StatusBoard] = field(default_factory=dict)
    valkey: Valkey | None = None
    tickers: SharedTickers | None = None
    given_permissions: InitVar[Permissions | None] = None
    permissions: Permissions = field(init=False)

    def __post_init__(self, given_permissions: Permissions | None) -> None:
        found = given_permissions
        if found is None and self.streams is not None:
            found = self.streams.permissions
        if found is None:
            found = Permissions(self.pool, self.orders.bus, self.settings.cache)
        object.__setattr__(self, "permissions", found)
