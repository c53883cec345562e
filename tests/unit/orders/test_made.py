"""An order that was just decided is not read from its entry; reading it gives the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from tbot.core import clock
from tbot.core.ids import new_id
from tbot.journal import chain
from tbot.journal.batch import Batch
from tbot.journal.commands import SYSTEM, AccountState, Context
from tbot.journal.projections import Projections
from tbot.ledger.entries import Ledger, Limits, OpenAccount
from tbot.ledger.store import LedgerProjection
from tbot.market.book import Reference
from tbot.orders.book import Orders
from tbot.orders.commands import PlaceOrder
from tbot.orders.rules import OrderRequest
from tbot.orders.store import OrdersProjection
from tbot.venues.base import Instrument, OrderType, Side, TimeInForce

NOW = datetime(2026, 11, 22, 5, 14, 43, 123456, tzinfo=UTC)
ACCOUNT = UUID(int=1)
LIMITS = Limits(max_order_notional=Decimal(10**6), max_open_orders=9, price_collar=Decimal("0.05"))
BTC = Instrument(
    *("paper", "BTC-USDT", "BTCUSDT", "BTC", "USDT", 8, 8),
    *(Decimal("0.01"), Decimal("0.01"), Decimal(10**6), Decimal("0.00001"), Decimal("0.00001")),
    *(Decimal(9000), Decimal("0.00001"), Decimal(100), Decimal(5), None, True),
)
PRICES = Reference("BTC-USDT", Decimal("99.0"), Decimal("100.00"), None, 0.0)
REQUESTS = [
    OrderRequest(
        *("BTC-USDT", Side.BUY, OrderType.LIMIT, TimeInForce.GTC),
        *(Decimal("1.500"), None, Decimal("99.10"), True, "mine"),
    ),
    OrderRequest(
        *("BTC-USDT", Side.SELL, OrderType.LIMIT, TimeInForce.IOC),
        *(Decimal("2.0"), None, Decimal(101)),
    ),
    OrderRequest(
        *("BTC-USDT", Side.BUY, OrderType.MARKET, TimeInForce.GTC, None, Decimal("10.50"), None)
    ),
]


def parts(state: AccountState) -> tuple[Any, ...]:
    """All that the projections keep of an account."""
    orders, ledger = state.part(Orders), state.part(Ledger)
    return (
        (orders.open, orders.created, orders.recalled, orders.changed, orders.positions),
        (ledger.account, ledger.balances, ledger.assets_changed, state.seq, state.hash, state.made),
    )


@pytest.mark.parametrize("later_s", [0, 60])
@pytest.mark.parametrize("request_", REQUESTS)
def test_what_was_decided_is_what_the_entry_says(request_: OrderRequest, later_s: int) -> None:
    projections = Projections(LedgerProjection(), OrdersProjection())
    state = AccountState(ACCOUNT, 0, chain.genesis(ACCOUNT), NOW + timedelta(seconds=later_s))
    deposits = {"USDT": Decimal(1000), "BTC": Decimal(5)}
    commands: list[Any] = [
        OpenAccount(new_id(), SYSTEM, ACCOUNT, UUID(int=2), "a", "paper", LIMITS, deposits),
        PlaceOrder(new_id(), SYSTEM, ACCOUNT, new_id(), request_, BTC, PRICES, 5.0),
    ]
    pendings: Any = [SimpleNamespace(command=command, once=None) for command in commands]
    batch = Batch(pendings, states={ACCOUNT: state})
    batch.decide(Context(NOW, {}), projections, 10.0)

    replayed = AccountState(ACCOUNT, 0, chain.genesis(ACCOUNT), NOW)
    for committed in batch.entries:
        entry = chain.read(committed.body)
        assert clock.unstamp(entry.at) == committed.at
        assert entry.command == str(committed.command_id)
        projections.apply(replayed, entry)
        replayed.seq, replayed.hash = entry.seq, committed.hash
    assert parts(replayed) == parts(state)
    (order,) = replayed.part(Orders).open.values()
    assert order.client_order_id == request_.client_order_id

    written = [projection.writes([state]) for projection in projections]
    again = [projection.writes([replayed]) for projection in projections]
    assert written == again, "and the tables get the same texts from either"
