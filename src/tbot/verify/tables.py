"""One account's rows, compared with what a replay of its journal gives: a function per family."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
import msgspec

from tbot.core import clock
from tbot.core.errors import NotFound
from tbot.journal.commands import AccountState
from tbot.ledger import members_store, payments_store
from tbot.ledger import store as ledger_store
from tbot.ledger import transfers_store
from tbot.ledger.entries import Balance, Ledger
from tbot.ledger.marks import Marks
from tbot.ledger.transfers import Transfers
from tbot.orders import store as orders_store
from tbot.orders.book import Orders
from tbot.verify.verdict import Verdict

PAGE_ROWS: Final = 2000

type Connection = asyncpg.Connection[Any]
type Compare = Callable[[Connection, AccountState, Verdict], Awaitable[None]]


async def compare_account(connection: Connection, state: AccountState, verdict: Verdict) -> None:
    """Compare every family's rows of an account.

    Args:
        state: As replayed from the first entry, without anything having been written.

    Raises:
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError: The database cannot be read.
    """
    for family, compare in FAMILIES.items():
        try:
            await compare(connection, state, verdict)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            raise
        except Exception as error:  # noqa: BLE001
            # A row that was changed by somebody else can make its reader raise anything.
            verdict.fault(
                f"account {state.account_id}: its rows of {family} cannot be read: {error!r}"
            )


async def _account(connection: Connection, state: AccountState, verdict: Verdict) -> None:
    try:
        stored, _ = await ledger_store.get_account(connection, state.account_id)
    except NotFound:
        stored = None
    verdict.compare(f"account {state.account_id}", state.part(Ledger).account, stored)


async def _balances(connection: Connection, state: AccountState, verdict: Verdict) -> None:
    replayed = state.part(Ledger).balances
    rows = await connection.fetch(
        "SELECT asset, available, held FROM balances WHERE account_id = $1", state.account_id
    )
    stored = {row["asset"]: Balance(row["available"], row["held"]) for row in rows}
    for asset in sorted(stored.keys() | replayed.keys()):
        verdict.compare(
            f"account {state.account_id}, balance of {asset}",
            replayed.get(asset, Balance()),
            stored.get(asset, Balance()),
        )


async def _marks(connection: Connection, state: AccountState, verdict: Verdict) -> None:
    expected = {
        seq: (at, msgspec.json.decode(balances)) for seq, at, balances in state.part(Marks).new
    }
    async for row in connection.cursor(
        "SELECT seq, at, balances FROM marks WHERE account_id = $1 ORDER BY seq", state.account_id
    ):
        stored = clock.stamp(row["at"]), msgspec.json.decode(row["balances"])
        replayed = expected.pop(row["seq"], None)
        verdict.compare(f"account {state.account_id}, mark {row['seq']}", replayed, stored)
    for seq, mark in expected.items():
        verdict.compare(f"account {state.account_id}, mark {seq}", mark, None)


async def _transfers(connection: Connection, state: AccountState, verdict: Verdict) -> None:
    part = state.part(Transfers)
    where = f"account {state.account_id}, transfer"
    expected = {**part.open, **part.recalled}
    after = None
    while True:
        page = await transfers_store.list_sent(
            connection, state.account_id, after=after, limit=PAGE_ROWS
        )
        for transfer in page:
            verdict.compare(f"{where} {transfer.id}", expected.pop(transfer.id, None), transfer)
        if len(page) < PAGE_ROWS:
            break
        after = page[-1].id
    for transfer_id, transfer in expected.items():
        verdict.compare(f"{where} {transfer_id}", transfer, None)


async def _payments(connection: Connection, state: AccountState, verdict: Verdict) -> None:
    where = f"account {state.account_id}, payment"
    async for payment_id, replayed, stored in payments_store.differences(connection, state):
        verdict.compare(f"{where} {payment_id}", replayed, stored)


async def _members(connection: Connection, state: AccountState, verdict: Verdict) -> None:
    where = f"account {state.account_id}, member"
    async for user_id, replayed, stored in members_store.differences(connection, state):
        verdict.compare(f"{where} {user_id}", replayed, stored)


async def _orders(connection: Connection, state: AccountState, verdict: Verdict) -> None:
    part = state.part(Orders)
    where = f"account {state.account_id}, order"
    expected = {
        order.id: msgspec.structs.replace(order, trade_ids=frozenset())
        for order in (*part.open.values(), *part.recalled.values())
    }
    before = None
    while True:
        page = await orders_store.list_orders(
            connection, [state.account_id], before=before, limit=PAGE_ROWS
        )
        for order in page:
            verdict.compare(f"{where} {order.id}", expected.pop(order.id, None), order)
        if len(page) < PAGE_ROWS:
            break
        before = page[-1].id
    for order_id, replayed in expected.items():
        verdict.compare(f"{where} {order_id}", replayed, None)


async def _client_keys(connection: Connection, state: AccountState, verdict: Verdict) -> None:
    """The column that makes a client's order id name one order for ever."""
    async for row in connection.cursor(
        "SELECT id, client_order_id, client_key FROM orders"
        " WHERE account_id = $1 AND (client_order_id IS NOT NULL OR client_key IS NOT NULL)",
        state.account_id,
    ):
        name = row["client_order_id"]
        key = None if name is None else orders_store.client_key(state.account_id, name)
        verdict.compare(
            f"account {state.account_id}, client key of order {row['id']}", key, row["client_key"]
        )


async def _fills(connection: Connection, state: AccountState, verdict: Verdict) -> None:
    where = f"account {state.account_id}, fill"
    expected = {(fill.order_id, fill.trade_id): fill for fill in state.part(Orders).new_fills}
    before_seq = None
    while True:
        found = await orders_store.list_fills(
            connection, state.account_id, before_seq=before_seq, limit=PAGE_ROWS
        )
        for fill in found:
            key = fill.order_id, fill.trade_id
            verdict.compare(f"{where} {key[0]}/{key[1]}", expected.pop(key, None), fill)
        if len(found) < PAGE_ROWS:
            break
        before_seq = found[-1].seq
    for key, replayed in expected.items():
        verdict.compare(f"{where} {key[0]}/{key[1]}", replayed, None)


async def _positions(connection: Connection, state: AccountState, verdict: Verdict) -> None:
    replayed = state.part(Orders).positions
    _, positions = await orders_store.get_positions(connection, state.account_id)
    stored = {position.symbol: position for position in positions}
    for symbol in sorted(stored.keys() | replayed.keys()):
        verdict.compare(
            f"account {state.account_id}, position in {symbol}",
            replayed.get(symbol),
            stored.get(symbol),
        )


FAMILIES: Final[dict[str, Compare]] = {
    "accounts": _account,
    "balances": _balances,
    "marks": _marks,
    "transfers": _transfers,
    "payments": _payments,
    "members": _members,
    "orders": _orders,
    "client keys": _client_keys,
    "fills": _fills,
    "positions": _positions,
}
"""What is compared of every account. A new projection's tables belong here."""

OWNERS: Final = {
    "journal": "account_id",
    "accounts": "id",
    "balances": "account_id",
    "marks": "account_id",
    "transfers": "source_id",
    "payments": "account_id",
    "account_members": "account_id",
    "orders": "account_id",
    "fills": "account_id",
    "positions": "account_id",
}
"""Tables, and the column that names the stream that a row follows from."""
