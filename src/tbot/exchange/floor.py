"""The trading floor: engine, log, tapes and listeners as one running exchange.

Entry points: `Floor.place`, `cancel`, `deposit` for commands; `Floor.play` for market events. Each
changes the state, appends to the log, and hands what is to be said to the outbox, which waits for
the flush. All calls belong to the event loop's thread; none awaits.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from tbot.core.clock import wall_ms
from tbot.core.settings import ExchangeSettings
from tbot.exchange import wire
from tbot.exchange.commandlog import CommandLog
from tbot.exchange.derived import Derived
from tbot.exchange.engine import Engine
from tbot.exchange.events import MarketEvent, Snapshot, Timed, Trade
from tbot.exchange.hub import Hub, Outbox
from tbot.exchange.instruments import Instrument, Refusal
from tbot.exchange.limits import Limits
from tbot.exchange.model import Deposited, Filled, Marked, Order, Record, Side, Status
from tbot.exchange.outcome import NewOrder, Outcome
from tbot.exchange.state import State
from tbot.exchange.tape import Message, Tape
from tbot.exchange.tickers import Tickers

_TRADES_KEPT: Final = 1000


class Floor:
    """A running exchange without its sockets and without its clock.

    Args:
        settings: Fees, limits and bounds.
        state: Restored from the log.
        instruments: Of the market source.
        start_ms: The market source's clock before its first event.
        log: Open for appending.
        outbox: Flushes that log.
        hub: Of the same outbox.
    """

    def __init__(
        self,
        settings: ExchangeSettings,
        state: State,
        instruments: Sequence[Instrument],
        start_ms: int,
        log: CommandLog,
        outbox: Outbox,
        hub: Hub,
    ) -> None:
        self.settings = settings
        self.state = state
        self.engine = Engine(state, instruments, settings.maker_fee, settings.taker_fee)
        self.log = log
        self.outbox = outbox
        self.hub = hub
        self.limits = Limits(
            settings.weight_1m_max, settings.orders_10s_max, settings.orders_1d_max
        )
        self.tapes = {
            symbol: Tape(
                market, state.side(symbol, Side.BUY), state.side(symbol, Side.SELL), start_ms
            )
            for symbol, market in self.engine.markets.items()
        }
        self.tickers = {symbol: Tickers(symbol) for symbol in self.engine.markets}
        self.trades: dict[str, deque[Trade]] = {
            symbol: deque(maxlen=_TRADES_KEPT) for symbol in self.engine.markets
        }
        self.derived = Derived(hub, self.tapes, self.tickers)
        self.position = 0
        self.events_played = 0

    # Opening

    def open_books(self, snapshots: Sequence[Snapshot], trade_ids: Mapping[str, int]) -> None:
        """Load the books that the market opens with; averages start from their middle.

        Args:
            trade_ids: By symbol, the source's trade id before its first event.
        """
        for symbol, trade_id in trade_ids.items():
            shift = self.state.printed.get(symbol, 0)
            self.engine.markets[symbol].trade_id = trade_id + shift
        for snapshot in snapshots:
            market = self.engine.markets[snapshot.symbol]
            market.book.apply_snapshot(snapshot)
            bid, ask = market.book.bids.live.best(), market.book.asks.live.best()
            if bid is not None and ask is not None:
                market.average_price = bid

    def skip(self, event: MarketEvent) -> None:
        """Let the market move to where it was before a restart, without touching users' orders."""
        event = self._numbered(event)
        market = self.engine.markets[event.symbol]
        self.tapes[event.symbol].note(event)
        if isinstance(event, Trade):
            market.last_price = event.price
            market.trade_id = event.id
            self._count(event)
        else:
            self.engine.replay_book(event)

    def settle_open_orders(self) -> None:
        """After a restart: expire orders of symbols that are gone, fill what is crossed now."""
        now_ms = wall_ms()
        for account in list(self.state.accounts.values()):
            for order in list(account.open.values()):
                if order.symbol not in self.engine.markets:
                    outcome = self.engine.cancel(account.name, order, "", now_ms, Status.EXPIRED)
                    assert isinstance(outcome, Outcome)
                    self._commit(outcome, {"method": "symbol_gone"}, now_ms)
        for symbol in self.engine.markets:
            crossed = self.engine.uncross(symbol, now_ms)
            if crossed is not None:
                self._commit(crossed, {}, now_ms)
            self.tapes[symbol].reveal()

    # Commands

    def place(
        self, new: NewOrder, command: dict[str, str], test: bool = False
    ) -> Outcome | Refusal:
        """Place an order. The answer may be told through the outbox only."""
        now_ms = wall_ms()
        outcome = self.engine.place(new, now_ms, test)
        if isinstance(outcome, Outcome) and outcome.effects:
            self._commit(outcome, command, now_ms)
        return outcome

    def cancel(
        self, account: str, order: Order, client_id: str, command: dict[str, str]
    ) -> Outcome | Refusal:
        """Cancel an order."""
        now_ms = wall_ms()
        outcome = self.engine.cancel(account, order, client_id, now_ms)
        if isinstance(outcome, Outcome):
            self._commit(outcome, command, now_ms)
        return outcome

    def deposit(self, deposit: Deposited, command: dict[str, str]) -> Outcome | Refusal:
        """Add funds once."""
        now_ms = wall_ms()
        outcome = self.engine.deposit(deposit, now_ms)
        if isinstance(outcome, Outcome) and outcome.effects:
            self._commit(outcome, command, now_ms)
            self._tell(
                deposit.account,
                {
                    "e": "balanceUpdate",
                    "E": now_ms,
                    "a": deposit.asset,
                    "d": wire.decimal_text(deposit.amount),
                    "T": now_ms,
                },
            )
        return outcome

    def mark(self, marked: Marked) -> None:
        """Log how far the market source has come."""
        now_ms = wall_ms()
        self.state.mark = marked
        self.log.append(Record(number=0, at_ms=now_ms, effects=[marked]))
        self.outbox.hold()

    # The market

    def play(self, timed: Timed) -> None:
        """Let the market move by one event and tell everyone."""
        event = self._numbered(timed.event)
        now_ms = wall_ms()
        self.position = timed.index + 1
        self.events_played += 1
        outcome = self.engine.on_event(event, now_ms)
        if isinstance(event, Trade):
            self._count(event)
        stream = event.symbol.lower() + "@"
        for message in self.tapes[event.symbol].on_event(event):
            self._publish(stream, message)
        self.derived.on_event(event)
        if outcome is not None:
            self._commit(outcome, {}, now_ms)

    def _numbered(self, event: MarketEvent) -> MarketEvent:
        """A source's trade with the number that it has on the tape: users' trades came between."""
        shift = self.state.printed.get(event.symbol, 0)
        if not shift or not isinstance(event, Trade):
            return event
        return msgspec.structs.replace(event, id=event.id + shift, frame=b"")

    def _count(self, trade: Trade) -> None:
        self.tickers[trade.symbol].add(
            trade.id, trade.price, trade.quantity, trade.buyer_is_maker, trade.time_ms
        )
        self.trades[trade.symbol].append(trade)

    def _publish(self, stream: str, message: Message) -> None:
        self.hub.publish(stream + message.kind, message.data, message.combined)
        if message.kind == "depth@100ms":
            self.derived.on_depth(stream, message.data)

    def refresh_averages(self) -> None:
        """Bring the five-minute averages up to date; called about once a second."""
        for symbol, market in self.engine.markets.items():
            average = self.tickers[symbol].average()
            if average is not None:
                market.average_price = average

    # Telling

    def _met(self, symbol: str) -> dict[str, str]:
        tape = self.tapes.get(symbol)
        best = tape.best() if tape is not None else None
        if tape is None or best is None:
            return {"position": str(self.position)}
        return {
            "symbol": symbol,
            "update_id": str(tape.last_id),
            "bid": str(best.bid),
            "ask": str(best.ask),
            "position": str(self.position),
        }

    def _commit(self, outcome: Outcome, command: dict[str, str], now_ms: int) -> None:
        self.log.append(
            Record(
                number=0,
                at_ms=now_ms,
                effects=outcome.effects,
                command=command,
                met=self._met(outcome.symbol),
            )
        )
        self.outbox.hold()
        for report in outcome.reports:
            account = report.order.account
            if self.hub.is_listened(account):
                self._tell(account, wire.execution_report(report, now_ms))
            if report.fill is not None and report.order.executed == report.fill.quantity:
                self.limits.refund(account)
        for name, assets in outcome.touched.items():
            if self.hub.is_listened(name):
                account_state = self.state.account(name)
                self._tell(name, wire.account_position(account_state, assets, now_ms))
        if outcome.symbol in self.tapes:
            tape = self.tapes[outcome.symbol]
            stream = outcome.symbol.lower() + "@"
            time_ms = tape.trade_ms
            for printed in outcome.prints:
                trade = Trade(
                    outcome.symbol, printed.id, printed.price, printed.quantity,
                    printed.buyer_is_maker, time_ms, time_ms,
                )  # fmt: skip
                self.engine.markets[outcome.symbol].last_price = printed.price
                self._count(trade)
                self.derived.on_event(trade)
            for message in tape.on_outcome(outcome):
                self._publish(stream, message)

    def _tell(self, account: str, event: dict[str, Any]) -> None:
        self.hub.tell(account, msgspec.json.encode(event))

    def fills_of(self, outcome: Outcome) -> list[Any]:
        """The executions that a command's own order got, newest run of its account's history."""
        order = outcome.order
        if order is None:
            return []
        count = sum(1 for e in outcome.effects if isinstance(e, Filled) and e.order_id == order.id)
        history = self.state.account(order.account).executions
        own = (e for e in reversed(history) if e.order_id == order.id)
        return list(itertools.islice(own, count))[::-1]
