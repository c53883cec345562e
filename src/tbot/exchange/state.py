"""Accounts, orders and executions: what the log rebuilds. Pure.

Entry point: `State.apply`, which performs one effect and decides nothing. Invariants:

1. For every asset, deposits = Σ balances (free and locked) + fees taken + what the market holds.
2. An account's locked balance of an asset is the sum of `locked` over its open orders giving it.
3. `resting` holds exactly the open limit orders.

History is bounded: of each account the newest closed orders and executions are kept, open orders
always; deposit ids are kept for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from decimal import Decimal

from tbot.core.errors import IntegrityError
from tbot.core.money import ZERO
from tbot.exchange.model import (
    Closed,
    Deposited,
    Effect,
    Execution,
    Filled,
    Marked,
    Opened,
    Order,
    OrderType,
    Side,
    Status,
)
from tbot.exchange.queue import Resting


class Balance:
    """What an account has of an asset."""

    __slots__ = ("free", "locked")

    def __init__(self, free: Decimal = ZERO, locked: Decimal = ZERO) -> None:
        self.free = free
        self.locked = locked


class Account:
    """One venue account.

    Attributes:
        open: Open orders by id, oldest first.
        closed: Ids of kept closed orders in the order of their ends.
        latest: The newest order of each client id.
        by_order: Kept executions of each order, oldest first.
    """

    __slots__ = (
        "_executions_kept",
        "balances",
        "by_order",
        "closed",
        "executions",
        "latest",
        "name",
        "open",
        "updated_ms",
    )

    def __init__(self, name: str, executions_kept: int) -> None:
        self._executions_kept = executions_kept
        self.name = name
        self.balances: dict[str, Balance] = {}
        self.open: dict[int, Order] = {}
        self.closed: deque[int] = deque()
        self.latest: dict[str, int] = {}
        self.executions: deque[Execution] = deque()
        self.by_order: dict[int, list[Execution]] = {}
        self.updated_ms = 0

    def balance(self, asset: str) -> Balance:
        """The account's balance of an asset, zero at first."""
        held = self.balances.get(asset)
        if held is None:
            held = self.balances[asset] = Balance()
        return held

    def remember(self, execution: Execution) -> None:
        """Add an execution to the history and forget the oldest beyond its bound."""
        self.executions.append(execution)
        self.by_order.setdefault(execution.order_id, []).append(execution)
        if len(self.executions) > self._executions_kept:
            oldest = self.executions.popleft()
            of_order = self.by_order[oldest.order_id]
            del of_order[0]
            if not of_order:
                del self.by_order[oldest.order_id]

    def free(self, asset: str) -> Decimal:
        """What it could spend."""
        held = self.balances.get(asset)
        return held.free if held else ZERO


class State:
    """Everything that must survive.

    Args:
        orders_kept: Closed orders remembered of each account.
        executions_kept: Executions remembered of each account.

    Attributes:
        printed: By symbol, how many of users' trades are on the public tape.
        newest_trade: By symbol, the highest trade id of a user's execution.
    """

    def __init__(self, orders_kept: int, executions_kept: int) -> None:
        self._orders_kept = orders_kept
        self._executions_kept = executions_kept
        self.accounts: dict[str, Account] = {}
        self.orders: dict[int, Order] = {}
        self.resting: dict[str, tuple[Resting, Resting]] = {}
        self.deposits: dict[str, Deposited] = {}
        self.fees: dict[str, Decimal] = {}
        self.market: dict[str, Decimal] = {}
        self.next_order_id = 1
        self.printed: dict[str, int] = {}
        self.newest_trade: dict[str, int] = {}
        self.mark: Marked | None = None
        self.position = 0

    def account(self, name: str) -> Account:
        """The account of that name, created empty at first use."""
        account = self.accounts.get(name)
        if account is None:
            account = self.accounts[name] = Account(name, self._executions_kept)
        return account

    def side(self, symbol: str, side: Side) -> Resting:
        """The resting orders of one side of a symbol."""
        pair = self.resting.get(symbol)
        if pair is None:
            pair = self.resting[symbol] = (Resting(True), Resting(False))
        return pair[0] if side is Side.BUY else pair[1]

    def find(self, account: str, order_id: int | None, client_id: str | None) -> Order | None:
        """An account's order by its id or else by client id (the newest that bore it)."""
        if order_id is None:
            order_id = self.account(account).latest.get(client_id or "")
        order = self.orders.get(order_id) if order_id is not None else None
        if order is None or order.account != account:
            return None
        return order if client_id is None or order.client_id == client_id else None

    def open_orders(self, account: str, symbol: str | None) -> Iterator[Order]:
        """Open orders of an account, oldest first."""
        for order in self.account(account).open.values():
            if symbol is None or order.symbol == symbol:
                yield order

    def apply(self, effect: Effect, at_ms: int) -> None:
        """Perform one effect.

        Raises:
            IntegrityError: The effect does not fit the state: the log is not of this exchange, or
                the code that wrote it was wrong. Nothing can be trusted then; stop.
        """
        if isinstance(effect, Filled):
            self._fill(effect, at_ms)
        elif isinstance(effect, Opened):
            self._open(effect.order)
        elif isinstance(effect, Closed):
            self._close(effect, at_ms)
        elif isinstance(effect, Deposited):
            self._deposit(effect, at_ms)
        else:
            self.mark = effect
            self.position = effect.position

    def _open(self, order: Order) -> None:
        account = self.account(order.account)
        if order.id in self.orders:
            raise IntegrityError(f"order {order.id} was opened twice")
        self.orders[order.id] = order
        account.open[order.id] = order
        account.latest[order.client_id] = order.id
        account.updated_ms = order.time_ms
        self.next_order_id = max(self.next_order_id, order.id + 1)
        if order.locked:
            held = account.balance(order.gives)
            held.free -= order.locked
            held.locked += order.locked
        if order.type is not OrderType.MARKET:
            self.side(order.symbol, order.side).add(order)

    def restore_order(self, order: Order) -> None:
        """Put back an order from a state file; balances are restored apart."""
        account = self.account(order.account)
        self.orders[order.id] = order
        if order.id > account.latest.get(order.client_id, 0):
            account.latest[order.client_id] = order.id
        if order.is_open:
            account.open[order.id] = order
            if order.type is not OrderType.MARKET:
                self.side(order.symbol, order.side).add(order)

    def _live(self, order_id: int) -> Order:
        order = self.orders.get(order_id)
        if order is None or not order.is_open:
            raise IntegrityError(f"order {order_id} is not open")
        return order

    def _fill(self, fill: Filled, at_ms: int) -> None:
        order = self._live(fill.order_id)
        account = self.account(order.account)
        value = fill.price * fill.quantity
        is_buy = order.side is Side.BUY
        given, got = (value, fill.quantity) if is_buy else (fill.quantity, value)
        gives = account.balance(order.gives)
        if order.type is OrderType.MARKET:
            gives.free -= given
        else:
            unlocked = order.price * fill.quantity if is_buy else fill.quantity
            order.locked -= unlocked
            gives.locked -= unlocked
            gives.free += unlocked - given
            self.side(order.symbol, order.side).reduce(order, fill.quantity)
        account.balance(order.gets).free += got - fill.fee
        self.fees[order.gets] = self.fees.get(order.gets, ZERO) + fill.fee
        self.market[order.gives] = self.market.get(order.gives, ZERO) + given
        self.market[order.gets] = self.market.get(order.gets, ZERO) - got
        order.executed += fill.quantity
        order.executed_quote += value
        order.updated_ms = account.updated_ms = at_ms
        order.status = Status.PARTIALLY_FILLED
        newest = self.newest_trade.get(order.symbol, 0)
        self.newest_trade[order.symbol] = max(newest, fill.trade_id)
        if fill.printed:
            self.printed[order.symbol] = self.printed.get(order.symbol, 0) + 1
        account.remember(
            Execution(
                id=fill.trade_id,
                order_id=order.id,
                symbol=order.symbol,
                price=fill.price,
                quantity=fill.quantity,
                quote_quantity=value,
                fee=fill.fee,
                fee_asset=order.gets,
                time_ms=at_ms,
                is_buyer=is_buy,
                is_maker=fill.maker,
            )
        )
        if order.quantity and order.executed >= order.quantity:
            self._end(order, Status.FILLED)

    def _close(self, effect: Closed, at_ms: int) -> None:
        order = self._live(effect.order_id)
        if order.type is not OrderType.MARKET:
            self.side(order.symbol, order.side).reduce(order, order.remaining)
        elif not order.quantity:
            order.quantity = order.executed
        order.updated_ms = self.account(order.account).updated_ms = at_ms
        self._end(order, effect.status)

    def _end(self, order: Order, status: Status) -> None:
        account = self.account(order.account)
        order.status = status
        if order.locked:
            held = account.balance(order.gives)
            held.locked -= order.locked
            held.free += order.locked
            order.locked = ZERO
        if order.type is not OrderType.MARKET:
            self.side(order.symbol, order.side).remove(order)
        del account.open[order.id]
        account.closed.append(order.id)
        while len(account.closed) > self._orders_kept:
            old = self.orders.pop(account.closed.popleft())
            if account.latest.get(old.client_id) == old.id:
                del account.latest[old.client_id]

    def _deposit(self, deposit: Deposited, at_ms: int) -> None:
        if deposit.deposit_id in self.deposits:
            raise IntegrityError(f"deposit {deposit.deposit_id} was applied twice")
        account = self.account(deposit.account)
        account.balance(deposit.asset).free += deposit.amount
        account.updated_ms = at_ms
        self.deposits[deposit.deposit_id] = deposit

    def imbalance(self) -> dict[str, Decimal]:
        """Invariant 1 by asset: deposits less everything held; only what is not zero."""
        sums: dict[str, Decimal] = {}
        for deposit in self.deposits.values():
            sums[deposit.asset] = sums.get(deposit.asset, ZERO) + deposit.amount
        for account in self.accounts.values():
            for asset, held in account.balances.items():
                sums[asset] = sums.get(asset, ZERO) - held.free - held.locked
        for totals in (self.fees, self.market):
            for asset, amount in totals.items():
                sums[asset] = sums.get(asset, ZERO) - amount
        return {asset: amount for asset, amount in sums.items() if amount}
