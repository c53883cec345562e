"""The matching engine: orders against the market's book and against each other. Pure.

Entry points: `Engine.place`, `cancel`, `cancel_all`, `deposit`, `on_event`. Each decides, applies
the effects to the state at once and returns them; the caller logs an outcome before anyone is told.

Invariants:

1. Price, then time, by the queue rule of `tbot.exchange.queue`.
2. No resting order stays at or through the market's live book: it is filled at its own price, up
   to the market quantity that crossed it.
3. What users take from the market is gone from its live book until the source sets that level.
4. Trade ids of a symbol are contiguous: a user's trade takes the id after the newest, and the
   source's later ones are moved up (`Floor`). The first resting order that a source's trade fills
   shares that trade's id, and so do two users who meet.
5. Users of one account may trade with each other: there is no self-trade prevention, because
   unrelated users share a venue account.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from tbot.core.money import ZERO, quantize
from tbot.exchange.book import BookSide, MarketBook
from tbot.exchange.events import Best, Depth, MarketEvent, Snapshot, Trade
from tbot.exchange.instruments import SCALE, Instrument, Refusal, check
from tbot.exchange.model import (
    Closed,
    Deposited,
    Effect,
    Filled,
    Opened,
    Order,
    OrderType,
    Side,
    Status,
    TimeInForce,
)
from tbot.exchange.outcome import NewOrder, Outcome, Print, Report
from tbot.exchange.queue import Budget, Match, serve, sweep, touched
from tbot.exchange.state import State

INSUFFICIENT: Final = Refusal(-2010, "Account has insufficient balance for requested action.")
DUPLICATE: Final = Refusal(-2010, "Duplicate order sent.")
WOULD_TAKE: Final = Refusal(-2010, "Order would immediately match and take.")
UNKNOWN_ORDER: Final = Refusal(-2011, "Unknown order sent.")
BAD_SYMBOL: Final = Refusal(-1121, "Invalid symbol.")
TOO_MANY: Final = Refusal(-2010, "Filter failure: MAX_NUM_ORDERS")


@dataclass(slots=True)
class Market:
    """One symbol: its rules, its book and its last trade.

    Attributes:
        trade_id: The newest id on the public tape; a user's trade takes the next one.
    """

    instrument: Instrument
    book: MarketBook = field(default_factory=MarketBook)
    trade_id: int = 0
    last_price: Decimal | None = None
    average_price: Decimal | None = None

    def side(self, side: Side) -> BookSide:
        """The market's bids or asks."""
        return self.book.bids if side is Side.BUY else self.book.asks


class Engine:
    """All symbols over one state.

    Args:
        maker_fee, taker_fee: Fee rates on what an order receives, cut to 8 decimals.
    """

    def __init__(
        self,
        state: State,
        instruments: Iterable[Instrument],
        maker_fee: Decimal,
        taker_fee: Decimal,
    ) -> None:
        self.state = state
        self.markets = {instrument.symbol: Market(instrument) for instrument in instruments}
        self._maker_fee = maker_fee
        self._taker_fee = taker_fee

    def place(self, new: NewOrder, now_ms: int, test: bool = False) -> Outcome | Refusal:
        """Accept an order and execute what it meets, or refuse it and change nothing.

        Args:
            test: Only check; an accepted order gives an empty outcome.
        """
        market = self.markets.get(new.symbol)
        if market is None:
            return BAD_SYMBOL
        state = self.state
        account = state.account(new.account)
        former = state.orders.get(account.latest.get(new.client_id, 0))
        if former is not None and former.is_open:
            return DUPLICATE
        refusal = check(
            market.instrument,
            new.side,
            new.type,
            new.price,
            new.quantity,
            new.quote_quantity,
            market.average_price,
        )
        if refusal is not None:
            return refusal
        resting_max = market.instrument.orders_max
        if len(account.open) >= resting_max and (
            sum(1 for _ in state.open_orders(new.account, new.symbol)) >= resting_max
        ):
            return TOO_MANY
        matches, complete = self._plan(market, new)
        if new.type is OrderType.LIMIT_MAKER and matches:
            return WOULD_TAKE
        if new.time_in_force is TimeInForce.FOK and not complete:
            matches = []
        locked, needed = self._funds(new, matches)
        instrument = market.instrument
        gives = instrument.quote if new.side is Side.BUY else instrument.base
        if account.free(gives) < needed:
            return INSUFFICIENT
        outcome = Outcome(new.symbol)
        if not test:
            self._execute(market, new, matches, complete, locked, now_ms, outcome)
        return outcome

    def _plan(self, market: Market, new: NewOrder) -> tuple[list[Match], bool]:
        """What the order would take now, and whether that is all it wants."""
        other = new.side.opposite
        by_quote = not new.quantity
        step = market.instrument.step
        budget = Budget(new.quantity, new.quote_quantity, step if by_quote else ZERO)
        limit = None if new.type is OrderType.MARKET else new.price
        resting = self.state.side(new.symbol, other)
        matches = sweep(market.side(other).live, resting, limit, budget)
        if by_quote:
            return matches, bool(matches) and not budget.room(matches[-1].price)
        return matches, not budget.quantity

    def _funds(self, new: NewOrder, matches: list[Match]) -> tuple[Decimal, Decimal]:
        """What to lock at acceptance, and what must be free."""
        if new.type is not OrderType.MARKET:
            locked = new.price * new.quantity if new.side is Side.BUY else new.quantity
            return locked, locked
        if new.side is Side.SELL:
            return ZERO, new.quantity or sum((match.quantity for match in matches), ZERO)
        return ZERO, sum((match.price * match.quantity for match in matches), ZERO)

    def _execute(
        self,
        market: Market,
        new: NewOrder,
        matches: list[Match],
        complete: bool,
        locked: Decimal,
        now_ms: int,
        outcome: Outcome,
    ) -> None:
        quantity = new.quantity
        if not quantity and complete:
            quantity = sum((match.quantity for match in matches), ZERO)
        order = Order(
            id=self.state.next_order_id,
            account=new.account,
            symbol=new.symbol,
            base=market.instrument.base,
            quote=market.instrument.quote,
            client_id=new.client_id,
            side=new.side,
            type=new.type,
            time_in_force=new.time_in_force,
            price=new.price,
            quantity=quantity,
            quote_quantity=new.quote_quantity,
            time_ms=now_ms,
            updated_ms=now_ms,
            locked=locked,
            ahead=(
                ZERO if new.type is OrderType.MARKET else market.side(new.side).live.get(new.price)
            ),
        )
        outcome.order = order
        self._perform(Opened(copy(order)), order, now_ms, outcome)
        other = new.side.opposite
        book, resting = market.side(other), self.state.side(new.symbol, other)
        for match in matches:
            number = self._next_trade_id(market)
            if match.maker is None:
                book.take(match.price, match.quantity)
                resting.pass_by(match.price, match.quantity)
            else:
                self._fill(match.maker, number, match.price, match.quantity, True, now_ms, outcome)
            self._fill(
                order, number, match.price, match.quantity, False, now_ms, outcome, printed=True
            )
            outcome.moved.add((other, match.price))
            outcome.prints.append(Print(number, match.price, match.quantity, new.side is Side.SELL))
        rests = new.type is not OrderType.MARKET and new.time_in_force is TimeInForce.GTC
        if order.is_open and not rests:
            self._perform(Closed(order.id, Status.EXPIRED), order, now_ms, outcome)
        elif order.is_open:
            outcome.moved.add((order.side, order.price))

    def _fill(
        self,
        order: Order,
        trade_id: int,
        price: Decimal,
        quantity: Decimal,
        maker: bool,
        now_ms: int,
        outcome: Outcome,
        printed: bool = False,
    ) -> None:
        rate = self._maker_fee if maker else self._taker_fee
        received = quantity if order.side is Side.BUY else price * quantity
        fee = quantize(received * rate, SCALE, decimal.ROUND_DOWN)
        effect = Filled(order.id, trade_id, price, quantity, fee, maker, printed)
        self._perform(effect, order, now_ms, outcome)

    def _perform(self, effect: Effect, order: Order, now_ms: int, outcome: Outcome) -> None:
        if isinstance(effect, Opened):
            # The effect keeps its own copy for the log; the state holds the one that changes.
            self.state.apply(Opened(order), now_ms)
            outcome.reports.append(Report(copy(order), "NEW", None, ""))
            outcome.touch(order.account, order.gives)
        else:
            self.state.apply(effect, now_ms)
            if isinstance(effect, Filled):
                outcome.reports.append(Report(copy(order), "TRADE", effect, ""))
                outcome.touch(order.account, order.gives, order.gets)
            elif isinstance(effect, Closed):
                outcome.reports.append(Report(copy(order), effect.status, None, effect.client_id))
                outcome.touch(order.account, order.gives)
        outcome.effects.append(effect)

    def cancel(
        self, account: str, order: Order, client_id: str, now_ms: int, why: Status = Status.CANCELED
    ) -> Outcome | Refusal:
        """End an open order. `client_id` names the cancel itself."""
        if not order.is_open or order.account != account:
            return UNKNOWN_ORDER
        outcome = Outcome(order.symbol, order=order)
        self._perform(Closed(order.id, why, client_id), order, now_ms, outcome)
        outcome.moved.add((order.side, order.price))
        return outcome

    def deposit(self, deposit: Deposited, now_ms: int) -> Outcome | Refusal:
        """Add funds; the same id and content again gives an empty outcome."""
        former = self.state.deposits.get(deposit.deposit_id)
        if former is not None:
            if former == deposit:
                return Outcome()
            return Refusal(-1130, "This deposit id was used with other content.")
        outcome = Outcome(effects=[deposit])
        self.state.apply(deposit, now_ms)
        outcome.touch(deposit.account, deposit.asset)
        return outcome

    def on_event(self, event: MarketEvent, now_ms: int) -> Outcome | None:
        """Let the market move; an outcome when users' orders were filled by it."""
        market = self.markets[event.symbol]
        if isinstance(event, Trade):
            market.last_price = event.price
            market.trade_id = max(market.trade_id, event.id)
            return self._meet_trade(market, event, now_ms)
        self.replay_book(event)
        bids = self.state.side(event.symbol, Side.BUY)
        if not bids.orders and not self.state.side(event.symbol, Side.SELL).orders:
            return None
        self._clip(market, event)
        return self.uncross(event.symbol, now_ms)

    def replay_book(self, event: MarketEvent) -> None:
        """Apply an event to the market's book alone."""
        book = self.markets[event.symbol].book
        if isinstance(event, Best):
            book.apply_best(event)
        elif isinstance(event, Depth):
            book.apply_depth(event)
        elif isinstance(event, Snapshot):
            book.apply_snapshot(event)

    def _clip(self, market: Market, event: MarketEvent) -> None:
        """Move resting orders forward where the market's quantity at their price shrank."""
        for side in (Side.BUY, Side.SELL):
            resting, live = self.state.side(event.symbol, side), market.side(side).live
            if not resting.orders:
                continue
            if isinstance(event, Depth):
                levels = event.bids if side is Side.BUY else event.asks
                prices = [price for price, _ in levels]
            elif isinstance(event, Best):
                best = event.bid if side is Side.BUY else event.ask
                prices = [*resting.totals.better(best), best]
            else:
                prices = list(resting.orders)
            for price in prices:
                if price in resting.orders:
                    resting.clip(price, live.get(price))

    def _next_trade_id(self, market: Market) -> int:
        newest = self.state.newest_trade.get(market.instrument.symbol, 0)
        market.trade_id = max(market.trade_id, newest) + 1
        return market.trade_id

    def _meet_trade(self, market: Market, trade: Trade, now_ms: int) -> Outcome | None:
        side = Side.BUY if trade.buyer_is_maker else Side.SELL
        resting = self.state.side(trade.symbol, side)
        if not resting.orders:
            return None
        budget = Budget(trade.quantity)
        outcome = Outcome(trade.symbol)
        for price in touched(resting, side, trade.price):
            ahead = trade.quantity if price == trade.price else ZERO
            for match in list(serve(price, ahead, resting.at(price), budget)):
                if match.maker is None:
                    resting.pass_by(price, match.quantity)
                    continue
                # The first shares the market trade's id; every further one is a trade of its own.
                own = bool(outcome.reports)
                number = self._next_trade_id(market) if own else trade.id
                self._fill(match.maker, number, price, match.quantity, True, now_ms, outcome, own)
                if own:
                    outcome.prints.append(
                        Print(number, price, match.quantity, trade.buyer_is_maker)
                    )
                outcome.moved.add((side, price))
        return outcome if outcome.effects else None

    def uncross(self, symbol: str, now_ms: int) -> Outcome | None:
        """Fill resting orders that the market's live book has reached (invariant 2)."""
        market = self.markets[symbol]
        outcome = Outcome(symbol)
        for side in (Side.BUY, Side.SELL):
            resting = self.state.side(symbol, side)
            against = market.side(side.opposite)
            while True:
                own, other = resting.totals.best(), against.live.best()
                if own is None or other is None:
                    break
                if own < other if side is Side.BUY else own > other:
                    break
                order = next(resting.at(own))
                quantity = min(order.remaining, against.live.get(other))
                against.take(other, quantity)
                number = self._next_trade_id(market)
                self._fill(order, number, own, quantity, True, now_ms, outcome, printed=True)
                outcome.moved.add((side, own))
                outcome.moved.add((side.opposite, other))
                outcome.prints.append(Print(number, own, quantity, side is Side.BUY))
        return outcome if outcome.effects else None
