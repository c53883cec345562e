"""A market of one symbol with an engine, without sockets, files or clocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal

import pytest

from tbot.exchange.engine import Engine
from tbot.exchange.events import Best, Depth, Snapshot, Trade
from tbot.exchange.instruments import KNOWN, Refusal
from tbot.exchange.model import Deposited, OrderType, Side, TimeInForce
from tbot.exchange.outcome import NewOrder, Outcome
from tbot.exchange.state import State

D = Decimal
SYMBOL = "BTCUSDT"


class Pit:
    """An engine with one account that has money, and short words to act on it."""

    def __init__(self, fee: str = "0.001") -> None:
        self.state = State(orders_kept=1000, executions_kept=1000)
        self.engine = Engine(self.state, [KNOWN[SYMBOL]], D(fee), D(fee))
        self.market = self.engine.markets[SYMBOL]
        self._ids = 0
        self._update = self._depth = 100
        self.now_ms = 1_000
        self.give("USDT", "1000000")
        self.give("BTC", "100")

    def give(self, asset: str, amount: str, account: str = "main") -> None:
        self._ids += 1
        deposit = Deposited(f"d{self._ids}", account, asset, D(amount))
        assert isinstance(self.engine.deposit(deposit, self.now_ms), Outcome)

    def book(self, bids: Sequence[tuple[str, str]], asks: Sequence[tuple[str, str]]) -> None:
        """Start with this book."""
        snapshot = Snapshot(
            SYMBOL,
            self._update,
            [(D(p), D(q)) for p, q in bids],
            [(D(p), D(q)) for p, q in asks],
        )
        self.engine.on_event(snapshot, self.now_ms)

    def depth(
        self, bids: Sequence[tuple[str, str]] = (), asks: Sequence[tuple[str, str]] = ()
    ) -> Outcome | None:
        """The source sets these levels."""
        first = self._depth + 1
        self._update = self._depth = self._update + 5
        diff = Depth(
            SYMBOL,
            first,
            self._update,
            [(D(p), D(q)) for p, q in bids],
            [(D(p), D(q)) for p, q in asks],
            self.now_ms,
        )
        return self.engine.on_event(diff, self.now_ms)

    def best(self, bid: str, bid_size: str, ask: str, ask_size: str) -> Outcome | None:
        """The source shows these best prices, newer than its depth."""
        self._update += 1
        event = Best(SYMBOL, self._update, D(bid), D(bid_size), D(ask), D(ask_size))
        return self.engine.on_event(event, self.now_ms)

    def trade(self, price: str, size: str, seller_aggressed: bool) -> Outcome | None:
        """Strangers trade."""
        self._ids += 1
        event = Trade(
            SYMBOL, self._ids, D(price), D(size), seller_aggressed, self.now_ms, self.now_ms
        )
        return self.engine.on_event(event, self.now_ms)

    def order(
        self,
        side: str,
        quantity: str = "0",
        price: str = "0",
        *,
        kind: str = "LIMIT",
        tif: str = "GTC",
        quote: str = "0",
        account: str = "main",
        client_id: str = "",
    ) -> Outcome | Refusal:
        """Place an order."""
        self._ids += 1
        new = NewOrder(
            account=account,
            symbol=SYMBOL,
            side=Side(side),
            type=OrderType.MARKET if price == "0" else OrderType(kind),
            time_in_force=TimeInForce(tif),
            price=D(price),
            quantity=D(quantity),
            quote_quantity=D(quote),
            client_id=client_id or f"c{self._ids}",
        )
        return self.engine.place(new, self.now_ms)


@pytest.fixture
def pit() -> Pit:
    """An engine over an empty market, one account with 1,000,000 USDT and 100 BTC."""
    return Pit()


@pytest.fixture(scope="session")
def new_pit() -> Callable[[], Pit]:
    """Makes engines, for tests that need a fresh one per example."""
    return Pit
