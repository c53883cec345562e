"""Tables of orders, fills, positions and instruments.

`OrdersProjection` keeps the first three in step with the journal; the functions read them, and
keep the copy of the venue's instruments. Every function takes a connection first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from tbot.core import clock, money
from tbot.core.errors import NotFound
from tbot.core.ids import LAST_ID, read_id
from tbot.journal.chain import Entry
from tbot.journal.commands import AccountState, Command, States
from tbot.journal.projections import Projection, Write
from tbot.orders import book
from tbot.orders.book import Orders
from tbot.orders.commands import PlaceOrder
from tbot.orders.model import FINAL, Fill, Order, Position, State
from tbot.venues.base import Instrument, OrderType, Side, TimeInForce

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

FINAL_SQL: Final = "('filled', 'canceled', 'rejected', 'expired')"


class _By(msgspec.Struct, frozen=True):
    request: str | None = None


class _Recorded(msgspec.Struct, frozen=True):
    """What of a journal entry tells who placed an order."""

    by: _By
    data: dict[str, msgspec.Raw]


_read_entry: Final = msgspec.json.Decoder(_Recorded).decode

# Column, its SQL array type, and whether it can change after the order was created.
_COLUMNS: Final = (
    ("id", "uuid", False),
    ("account_id", "uuid", False),
    ("client_order_id", "text", False),
    ("parent_id", "uuid", False),
    ("venue", "text", False),
    ("symbol", "text", False),
    ("side", "text", False),
    ("type", "text", False),
    ("time_in_force", "text", False),
    ("post_only", "boolean", False),
    ("quantity", "numeric", False),
    ("quote_amount", "numeric", False),
    ("limit_price", "numeric", False),
    ("state", "text", True),
    ("reason", "text", True),
    ("filled_quantity", "numeric", True),
    ("filled_quote", "numeric", True),
    ("fees", "jsonb", True),
    ("held_asset", "text", False),
    ("held_amount", "numeric", True),
    ("cancel_requested", "boolean", True),
    ("venue_order_id", "text", True),
    ("send_by", "timestamptz", False),
    ("created_at", "timestamptz", False),
    ("updated_at", "timestamptz", True),
    ("seq", "bigint", True),
)
_NAMES: Final = [name for name, _, _ in _COLUMNS]
_SELECT: Final = ", ".join(f"o.{name}" for name in _NAMES)
_CHANGING: Final = [("id", "uuid"), *((n, t) for n, t, changes in _COLUMNS if changes)]

_PENDING_NEW: Final = State.PENDING_NEW
_INSERTED: Final = [("client_key", "uuid"), *((n, t) for n, t, _ in _COLUMNS)]
# Numbers and times travel as texts: the server reads them faster than we could write them in its
# binary form.
_AS_TEXT: Final = frozenset({"numeric", "timestamptz", "jsonb"})


def _unnest(columns: Sequence[tuple[str, str]]) -> str:
    arrays = ", ".join(
        f"{{{i}}}::{'text' if kind in _AS_TEXT else kind}[]" for i, (_, kind) in enumerate(columns)
    )
    return f"unnest({arrays}) AS u ({', '.join(name for name, _ in columns)})"


def _read(name: str, kind: str) -> str:
    return f"u.{name}::{kind}" if kind in _AS_TEXT else f"u.{name}"


_INSERT_ORDERS: Final = "INSERT INTO orders ({}) SELECT {} FROM {}".format(
    ", ".join(n for n, _ in _INSERTED),
    ", ".join(_read(n, t) for n, t in _INSERTED),
    _unnest(_INSERTED),
)
_UPDATE_ORDERS: Final = "UPDATE orders o SET {} FROM {} WHERE o.id = u.id".format(
    ", ".join(f"{n} = {_read(n, t)}" for n, t in _CHANGING[1:]), _unnest(_CHANGING)
)
# What every order has that was just accepted, and what differs.
_NEW: Final = {
    "state": f"'{State.PENDING_NEW}'",
    "filled_quantity": "0",
    "filled_quote": "0",
    "fees": "'{{}}'",
    "cancel_requested": "false",
    "updated_at": "u.created_at::timestamptz",
}
_NEW_NULL: Final = frozenset({"parent_id", "reason", "venue_order_id"})
_NEW_COLUMNS: Final = [(n, t) for n, t in _INSERTED if n not in _NEW and n not in _NEW_NULL]
_INSERT_NEW_ORDERS: Final = "INSERT INTO orders ({}) SELECT {} FROM {}".format(
    ", ".join([n for n, _ in _NEW_COLUMNS] + list(_NEW)),
    ", ".join([_read(n, t) for n, t in _NEW_COLUMNS] + list(_NEW.values())),
    _unnest(_NEW_COLUMNS),
)
_INSERT_FILLS: Final = """INSERT INTO fills
 (order_id, trade_id, account_id, seq, symbol, side, price, quantity,
 quote_quantity, fee, fee_asset, maker, at)
SELECT order_id, trade_id, account_id, seq, symbol, side, price::numeric, quantity::numeric,
 quote_quantity::numeric, fee::numeric, fee_asset, maker, at::timestamptz
FROM unnest({0}::uuid[], {1}::text[], {2}::uuid[], {3}::bigint[], {4}::text[],
 {5}::text[], {6}::text[], {7}::text[], {8}::text[], {9}::text[], {10}::text[],
 {11}::boolean[], {12}::text[])
 AS u (order_id, trade_id, account_id, seq, symbol, side, price, quantity, quote_quantity, fee,
       fee_asset, maker, at)"""
_WRITE_POSITIONS: Final = """INSERT INTO positions
 (account_id, symbol, quantity, cost, realized_pnl)
SELECT account_id, symbol, quantity::numeric, cost::numeric, realized_pnl::numeric
FROM unnest({0}::uuid[], {1}::text[], {2}::text[], {3}::text[], {4}::text[])
 AS u (account_id, symbol, quantity, cost, realized_pnl)
ON CONFLICT (account_id, symbol) DO UPDATE SET quantity = excluded.quantity,
 cost = excluded.cost, realized_pnl = excluded.realized_pnl"""


class OrdersProjection(Projection):
    """Keeps `orders`, `fills` and `positions` in step with the journal."""

    entries = "order."

    async def load(
        self, connection: asyncpg.Connection[Any], states: Sequence[AccountState]
    ) -> None:
        """Read open orders, with the trades booked for them, and positions."""
        by_id = {state.account_id: state.part(Orders) for state in states}
        ids = list(by_id)
        rows = await connection.fetch(
            f"SELECT {_SELECT} FROM orders o WHERE o.account_id = ANY($1::uuid[])"
            f" AND o.state NOT IN {FINAL_SQL}",
            ids,
        )
        for order in await _with_trades(connection, rows):
            by_id[order.account_id].put(order)
        for row in await connection.fetch(
            "SELECT account_id, symbol, quantity, cost, realized_pnl FROM positions"
            " WHERE account_id = ANY($1::uuid[])",
            ids,
        ):
            by_id[row["account_id"]].positions[row["symbol"]] = _position(row)

    async def fetch(
        self, connection: asyncpg.Connection[Any], commands: Sequence[Command[Any]], states: States
    ) -> None:
        """Read final orders that commands name, and orders that client ids already name."""
        for state in states.values():
            part = state.parts.get(Orders)
            if part is not None:
                part.forget()
        wanted: list[UUID] = []
        keys: list[UUID] = []
        for command in commands:
            if isinstance(command, PlaceOrder):
                client_id = command.request.client_order_id
                if client_id is not None:
                    keys.append(client_key(command.account_id, client_id))
                continue
            for name in ("order_id", "parent_id"):
                order_id = getattr(command, name, None)
                known = states.get(command.accounts[0])
                if order_id is None or known is None:
                    continue
                if order_id not in known.part(Orders).open:
                    wanted.append(order_id)
        if not wanted and not keys:
            return
        rows = await connection.fetch(
            f"SELECT {_SELECT} FROM orders o WHERE o.id = ANY($1::uuid[])"
            f" UNION ALL SELECT {_SELECT} FROM orders o WHERE o.client_key = ANY($2::uuid[])",
            wanted,
            keys,
        )
        for order in await _with_trades(connection, rows):
            if order.final and order.account_id in states:
                states[order.account_id].part(Orders).put(order)

    def concerns(self, command: Command[Any]) -> bool:
        """Those that name an order."""
        return hasattr(command, "order_id") or hasattr(command, "parent_id")

    def reads(self, command: Command[Any], states: States) -> bool:
        """Whether it names an order that is final, or that is not there."""
        if isinstance(command, PlaceOrder):
            return False  # a client id that was used before breaks the unique index
        for name in ("order_id", "parent_id"):
            order_id = getattr(command, name, None)
            if order_id is not None and (
                order_id not in states[command.accounts[0]].part(Orders).open
            ):
                return True
        return False

    def recalls(self, command: Command[Any]) -> bool:
        """Whether its client id may be that of a final order."""
        return isinstance(command, PlaceOrder) and command.request.client_order_id is not None

    def apply(self, state: AccountState, entry: Entry) -> None:
        """See `tbot.orders.book.apply`."""
        book.apply(state, entry)

    def writes(self, states: Sequence[AccountState]) -> list[Write]:
        """New orders, changed orders, new fills and changed positions."""
        new: list[Order] = []
        created: list[Order] = []
        changed: list[Order] = []
        fills: list[Fill] = []
        positions: list[tuple[UUID, Position]] = []
        for state in states:
            orders = state.parts.get(Orders)
            if orders is None or not (orders.created or orders.changed or orders.recalled):
                continue
            for order_id, first in orders.created.items():
                order = orders.find(order_id)
                if order is first and first.parent_id is None and first.state is _PENDING_NEW:
                    new.append(order)
                elif order is not None:
                    created.append(order)
            changed.extend(_known(orders, orders.changed))
            fills.extend(orders.new_fills)
            positions.extend(
                (state.account_id, orders.positions[symbol]) for symbol in orders.positions_changed
            )
            orders.forget()
        writes = []
        if new:
            writes.append(Write(_INSERT_NEW_ORDERS, _columns(new, _NEW_COLUMNS)))
        if created:
            writes.append(Write(_INSERT_ORDERS, _columns(created, _INSERTED)))
        if changed:
            writes.append(Write(_UPDATE_ORDERS, _columns(changed, _CHANGING)))
        if fills:
            writes.append(Write(_INSERT_FILLS, _fill_columns(fills)))
        if positions:
            writes.append(
                Write(
                    _WRITE_POSITIONS,
                    [
                        [account_id for account_id, _ in positions],
                        [p.symbol for _, p in positions],
                        [money.text(p.quantity) for _, p in positions],
                        [money.text(p.cost) for _, p in positions],
                        [money.text(p.realized_pnl) for _, p in positions],
                    ],
                )
            )
        return writes


def client_key(account_id: UUID, client_order_id: str) -> UUID:
    """What the unique index holds for a user's own order id: 128 bits of a hash of both.

    Example:
        >>> client_key(UUID(int=1), "mine") == client_key(UUID(int=2), "mine")
        False
    """
    data = account_id.bytes + client_order_id.encode()
    return read_id(hashlib.blake2b(data, digest_size=16).digest())


def _known(orders: Orders, ids: set[UUID]) -> list[Order]:
    found = [orders.find(order_id) for order_id in sorted(ids)]
    return [order for order in found if order is not None]


def _columns(orders: Sequence[Order], columns: Sequence[tuple[str, str]]) -> list[list[Any]]:
    """The orders column by column, as the statements take them."""
    found: list[list[Any]] = []
    for name, kind in columns:
        if name == "client_key":
            keys = [order.client_order_id for order in orders]
            values: list[Any] = [
                key and client_key(order.account_id, key)
                for key, order in zip(keys, orders, strict=True)
            ]
        elif name == "fees":
            values = [msgspec.json.encode(order.fees).decode() for order in orders]
        else:
            values = list(map(attrgetter(name), orders))
            if kind == "numeric":
                values = _texts(values)
        found.append(values)
    return found


def _texts(amounts: Sequence[Any]) -> list[str | None]:
    text = money.text
    return [None if amount is None else text(amount) for amount in amounts]


def _fill_columns(fills: Sequence[Fill]) -> list[list[Any]]:
    columns = [[getattr(fill, name) for fill in fills] for name in Fill.__struct_fields__]
    for place in range(6, 10):
        columns[place] = _texts(columns[place])
    return columns


def order_from_row(row: asyncpg.Record) -> Order:
    """An order as its row has it; `trade_ids` stays empty."""
    return Order(
        **{
            name: row[name]
            for name in _NAMES
            if name not in ("side", "type", "time_in_force", "state", "fees")
            and not name.endswith(("_at", "_by"))
        },
        side=Side(row["side"]),
        type=OrderType(row["type"]),
        time_in_force=TimeInForce(row["time_in_force"]),
        state=State(row["state"]),
        fees=msgspec.json.decode(row["fees"]),
        send_by=clock.stamp(row["send_by"]),
        created_at=clock.stamp(row["created_at"]),
        updated_at=clock.stamp(row["updated_at"]),
    )


async def _with_trades(connection: Connection, rows: Sequence[asyncpg.Record]) -> list[Order]:
    """Orders from rows, with the ids of the trades that are booked for them."""
    orders = {row["id"]: order_from_row(row) for row in rows}
    filled = [order.id for order in orders.values() if order.filled_quantity]
    if filled:
        for row in await connection.fetch(
            "SELECT order_id, array_agg(trade_id) AS trade_ids FROM fills"
            " WHERE order_id = ANY($1::uuid[]) GROUP BY order_id",
            filled,
        ):
            orders[row["order_id"]] = msgspec.structs.replace(
                orders[row["order_id"]], trade_ids=frozenset(row["trade_ids"])
            )
    return list(orders.values())


def _position(row: asyncpg.Record) -> Position:
    return Position(
        symbol=row["symbol"],
        quantity=row["quantity"],
        cost=row["cost"],
        realized_pnl=row["realized_pnl"],
    )


async def get_order(connection: Connection, order_id: UUID) -> Order:
    """One order.

    Raises:
        NotFound: No such order.
    """
    row = await connection.fetchrow(f"SELECT {_SELECT} FROM orders o WHERE o.id = $1", order_id)
    if row is None:
        raise NotFound("no such order")
    return order_from_row(row)


async def list_orders(
    connection: Connection,
    account_ids: Sequence[UUID],
    *,
    symbol: str | None = None,
    side: Side | None = None,
    states: Sequence[State] | None = None,
    is_open: bool | None = None,
    before: UUID | None = None,
    limit: int = 100,
) -> list[Order]:
    """A page of orders of the accounts, newest first.

    Args:
        before: Only orders older than this id (ids sort by time).
        limit: At most this many (>= 1).
    """
    condition = ""
    if is_open is not None:
        condition = f" AND o.state {'NOT ' if is_open else ''}IN {FINAL_SQL}"
    rows = await connection.fetch(
        # Each account's newest, and of those the newest: one condition on all the accounts would
        # sort everything they ever ordered.
        f"SELECT {_SELECT} FROM unnest($1::uuid[]) AS a (id) CROSS JOIN LATERAL ("
        "SELECT * FROM orders o WHERE o.account_id = a.id"
        " AND ($2::text IS NULL OR o.symbol = $2) AND ($3::text IS NULL OR o.side = $3)"
        " AND ($4::text[] IS NULL OR o.state = ANY($4)) AND o.id < $5"
        f"{condition} ORDER BY o.id DESC LIMIT $6) AS o ORDER BY o.id DESC LIMIT $6",
        list(account_ids),
        symbol,
        side,
        None if states is None else list(states),
        before or LAST_ID,
        limit,
    )
    return [order_from_row(row) for row in rows]


async def list_venue_open(connection: Connection, venue: str) -> list[Order]:
    """Every order of a venue that is not final, oldest first, with its booked trades."""
    rows = await connection.fetch(
        f"SELECT {_SELECT} FROM orders o WHERE o.venue = $1 AND o.state NOT IN {FINAL_SQL}"
        " ORDER BY o.id",
        venue,
    )
    return await _with_trades(connection, rows)


async def placed_under(connection: Connection, order: Order) -> str | None:
    """The id of the request that placed an order; None when that is not what happened to it last.

    Args:
        order: As it was accepted.
    """
    body: bytes | None = await connection.fetchval(
        "SELECT body FROM journal WHERE account_id = $1 AND seq = $2", order.account_id, order.seq
    )
    entry = None if body is None else _read_entry(body)
    return entry.by.request if entry is not None and "accepted" in entry.data else None


async def find_external(connection: Connection, parent_id: UUID) -> Order | None:
    """The external order that was adopted for an order taken for absent, if any."""
    row = await connection.fetchrow(
        f"SELECT {_SELECT} FROM orders o WHERE o.parent_id = $1", parent_id
    )
    return None if row is None else order_from_row(row)


async def list_fills(
    connection: Connection,
    account_id: UUID,
    *,
    symbol: str | None = None,
    order_id: UUID | None = None,
    before_seq: int | None = None,
    limit: int = 100,
) -> list[Fill]:
    """A page of an account's fills, newest first; `before_seq` continues one."""
    rows = await connection.fetch(
        "SELECT order_id, trade_id, account_id, seq, symbol, side, price, quantity,"
        " quote_quantity, fee, fee_asset, maker, at FROM fills WHERE account_id = $1"
        " AND ($2::text IS NULL OR symbol = $2) AND ($3::uuid IS NULL OR order_id = $3)"
        " AND ($4::bigint IS NULL OR seq < $4) ORDER BY seq DESC LIMIT $5",
        account_id,
        symbol,
        order_id,
        before_seq,
        limit,
    )
    return [
        Fill(
            **{name: row[name] for name in Fill.__struct_fields__ if name not in ("side", "at")},
            side=Side(row["side"]),
            at=clock.stamp(row["at"]),
        )
        for row in rows
    ]


async def get_positions(connection: Connection, account_id: UUID) -> tuple[int, list[Position]]:
    """The account's sequence and its positions as of that sequence, in one snapshot.

    Raises:
        NotFound: No such account.
    """
    rows = await connection.fetch(
        "SELECT s.seq, p.symbol, p.quantity, p.cost, p.realized_pnl FROM streams s"
        " LEFT JOIN positions p USING (account_id) WHERE s.account_id = $1 ORDER BY p.symbol",
        account_id,
    )
    if not rows:
        raise NotFound("no such account")
    return rows[0]["seq"], [_position(row) for row in rows if row["symbol"]]


_INSTRUMENT_FIELDS: Final = tuple(Instrument.__slots__)


async def save_instruments(connection: Connection, instruments: Sequence[Instrument]) -> None:
    """Bring the copy of a venue's instruments up to date, know their assets, and tell of it."""
    await connection.executemany(
        "INSERT INTO instruments ({}, updated_at) VALUES ({}, now())"
        " ON CONFLICT (venue, symbol) DO UPDATE SET {}, updated_at = now()".format(
            ", ".join(_INSTRUMENT_FIELDS),
            ", ".join(f"${i + 1}" for i in range(len(_INSTRUMENT_FIELDS))),
            ", ".join(f"{n} = excluded.{n}" for n in _INSTRUMENT_FIELDS[2:]),
        ),
        [tuple(getattr(i, name) for name in _INSTRUMENT_FIELDS) for i in instruments],
    )
    scales = {i.base: i.base_scale for i in instruments} | {
        i.quote: i.quote_scale for i in instruments
    }
    await connection.executemany(
        "INSERT INTO assets (code, scale) VALUES ($1, $2)"
        " ON CONFLICT (code) DO UPDATE SET scale = greatest(assets.scale, excluded.scale)",
        sorted(scales.items()),
    )
    for venue in sorted({i.venue for i in instruments}):
        await connection.execute("SELECT pg_notify('tbot', 'instruments:' || $1::text)", venue)


async def load_instruments(connection: Connection, venue: str) -> list[Instrument]:
    """The venue's instruments as last seen, by symbol."""
    rows = await connection.fetch(
        f"SELECT {', '.join(_INSTRUMENT_FIELDS)} FROM instruments WHERE venue = $1 ORDER BY symbol",
        venue,
    )
    return [Instrument(**dict(row)) for row in rows]


assert {state.value for state in FINAL} == set(FINAL_SQL.strip("()").replace("'", "").split(", "))
