"""The baseline of the hot account: one Postgres transaction per request, on the same tables.

Written as one would without group commit: take a connection from the pool, lock the account, read
what the decision needs, decide with the same rules, write each table, commit. It keeps nothing in
memory between requests and does not count open orders, which is in its favour.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from tbot.core import clock, money
from tbot.core.refusals import Refused
from tbot.journal import chain
from tbot.journal.chain import Entry
from tbot.journal.commands import Accepted, AccountState, Command, Context, Switch
from tbot.ledger import entries as ledger_entries
from tbot.ledger import store as ledger_store
from tbot.ledger.entries import Balance, Ledger
from tbot.orders import book, store
from tbot.orders.book import Orders
from tbot.orders.commands import PlaceOrder
from tbot.orders.model import Order

_LOCK = "SELECT seq, hash, at FROM streams WHERE account_id = $1 FOR NO KEY UPDATE"
_ACCOUNT = f"SELECT {ledger_store._ACCOUNT_COLUMNS} FROM accounts WHERE id = $1"
_BALANCES = "SELECT asset, available, held FROM balances WHERE account_id = $1"
_KNOWN = f"SELECT {store._SELECT} FROM orders o WHERE o.client_key = $1"
_SWITCHES = "SELECT name, halted, reason FROM switches FOR SHARE"
_ORDER = "INSERT INTO orders ({}) VALUES ({})".format(
    ", ".join(name for name, _ in store._INSERTED),
    ", ".join(f"${n + 1}" for n in range(len(store._INSERTED))),
)
_BALANCE = "UPDATE balances SET available = $3, held = $4 WHERE account_id = $1 AND asset = $2"
_JOURNAL = (
    "INSERT INTO journal (account_id, seq, command_id, kind, at, body, hash)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7)"
)
_HEAD = "UPDATE streams SET seq = $2, hash = $3, at = $4 WHERE account_id = $1"


class OneTransactionEach:
    """In a committer's place; takes `PlaceOrder` alone."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    async def commit(self, command: Command[Any], *_: Any, **__: Any) -> Accepted[Any] | Refused:
        """One command, one transaction."""
        assert isinstance(command, PlaceOrder)
        async with self._pool.acquire() as connection, connection.transaction():
            return await self._place(connection, command)

    async def _place(self, connection: Any, command: PlaceOrder) -> Accepted[Any] | Refused:
        account_id = command.account_id
        head = await connection.fetchrow(_LOCK, account_id)
        state = AccountState(account_id, head["seq"], head["hash"], head["at"])
        ledger = state.part(Ledger)
        ledger.account = ledger_store._account(await connection.fetchrow(_ACCOUNT, account_id))
        for row in await connection.fetch(_BALANCES, account_id):
            ledger.balances[row["asset"]] = Balance(row["available"], row["held"])
        client_id = command.request.client_order_id
        key = None
        if client_id is not None:
            key = store.client_key(account_id, client_id)
            known = await connection.fetchrow(_KNOWN, key)
            if known is not None:
                state.part(Orders).put(store.order_from_row(known))
        switches = {
            row["name"]: Switch(row["halted"], row["reason"])
            for row in await connection.fetch(_SWITCHES)
        }
        states = {account_id: state}
        decision = command.decide(states, Context(clock.utc_now(), switches))
        if isinstance(decision, Refused):
            return decision
        for draft in decision.entries:
            await self._append(connection, state, command, draft, key)
        return Accepted(command.result(states), ())

    async def _append(
        self,
        connection: Any,
        state: AccountState,
        command: PlaceOrder,
        draft: Any,
        key: UUID | None,
    ) -> None:
        at = max(clock.utc_now(), state.at)
        entry = Entry(
            v=1,
            account=str(state.account_id),
            seq=state.seq + 1,
            at=clock.stamp(at),
            kind=draft.kind,
            command=str(command.id),
            by=command.actor.to_json(),
            postings=[(p.holder, p.asset, money.text(p.amount)) for p in draft.postings],
            data=draft.data,
        )
        body, digest = chain.seal(state.hash, entry)
        state.seq, state.hash, state.at = entry.seq, digest, at
        ledger_entries.apply(state, entry)
        book.apply(state, entry)
        order = state.part(Orders).find(command.order_id)
        assert order is not None
        await connection.execute(_ORDER, *_columns(order, key))
        ledger = state.part(Ledger)
        for asset in ledger.assets_changed:
            balance = ledger.balances[asset]
            await connection.execute(
                _BALANCE, state.account_id, asset, balance.available, balance.held
            )
        await connection.execute(
            _JOURNAL, state.account_id, entry.seq, command.id, entry.kind, at, body, digest
        )
        await connection.execute(_HEAD, state.account_id, entry.seq, digest, at)


def _columns(order: Order, key: UUID | None) -> list[Any]:
    row = {"client_key": key, **{name: getattr(order, name) for name in store._NAMES}}
    row["fees"] = msgspec.json.encode(order.fees).decode()
    for name in ("send_by", "created_at", "updated_at"):
        row[name] = clock.unstamp(row[name])
    return [row[name] for name, _ in store._INSERTED]
