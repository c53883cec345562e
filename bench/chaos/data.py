"""What the database says, read by plain SQL."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

import asyncpg


@dataclass(frozen=True, slots=True)
class Row:
    """A journal entry as it is stored."""

    seq: int
    command: str
    kind: str
    at: str
    body: bytes
    hash: bytes


class Source(Protocol):
    """Everything the checker looks at besides the clients' log and the venue.

    Attributes:
        streams: account → (sequence, hash) of its head.
        balances: (account, asset) → (available, held).
        counters: (name, asset) → amount, over all lanes.
        orders: Rows of `orders`, ids as text.
        fills: (order, trade id) → (quantity, quote quantity, fee, fee asset).
        transfers: id → row.
        scales: symbol → decimals of its quote asset.
    """

    streams: dict[str, tuple[int, bytes]]
    balances: dict[tuple[str, str], tuple[Decimal, Decimal]]
    counters: dict[tuple[str, str], Decimal]
    orders: list[dict[str, Any]]
    fills: dict[tuple[str, str], tuple[Decimal, Decimal, Decimal, str]]
    transfers: dict[str, dict[str, Any]]
    scales: dict[str, int]

    async def journal(self, account: str) -> list[Row]:
        """An account's entries by sequence."""


class Database:
    """The tables, read once; journals are read as they are asked for."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection
        self.streams: dict[str, tuple[int, bytes]] = {}
        self.balances: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
        self.counters: dict[tuple[str, str], Decimal] = {}
        self.orders: list[dict[str, Any]] = []
        self.fills: dict[tuple[str, str], tuple[Decimal, Decimal, Decimal, str]] = {}
        self.transfers: dict[str, dict[str, Any]] = {}
        self.scales: dict[str, int] = {}

    @classmethod
    async def read(cls, connection: asyncpg.Connection[Any]) -> Database:
        """Everything but the journals."""
        self = cls(connection)
        fetch = connection.fetch
        for row in await fetch("SELECT account_id::text AS a, seq, hash FROM streams"):
            self.streams[row["a"]] = row["seq"], row["hash"]
        for row in await fetch(
            "SELECT account_id::text AS a, asset, available, held FROM balances"
        ):
            self.balances[row["a"], row["asset"]] = row["available"], row["held"]
        for row in await fetch("SELECT name, asset, sum(amount) AS s FROM counters GROUP BY 1, 2"):
            self.counters[row["name"], row["asset"]] = row["s"]
        self.orders = [
            dict(row)
            for row in await fetch(
                "SELECT id::text, account_id::text, client_order_id, parent_id::text, symbol, side,"
                " type, quantity, quote_amount, limit_price, state, reason, filled_quantity,"
                " filled_quote, held_asset, held_amount, cancel_requested, venue_order_id"
                " FROM orders"
            )
        ]
        for row in await fetch(
            "SELECT order_id::text AS o, trade_id, quantity, quote_quantity, fee, fee_asset"
            " FROM fills"
        ):
            self.fills[row["o"], row["trade_id"]] = (
                row["quantity"],
                row["quote_quantity"],
                row["fee"],
                row["fee_asset"],
            )
        if await connection.fetchval("SELECT to_regclass('transfers') IS NOT NULL"):
            for row in await fetch(
                "SELECT id::text, source_id::text, target_id::text, asset, amount, state,"
                " posted_amount, reverses::text, reversed_by::text FROM transfers"
            ):
                self.transfers[row["id"]] = dict(row)
        for row in await fetch("SELECT symbol, quote_scale FROM instruments"):
            self.scales[row["symbol"]] = row["quote_scale"]
        return self

    async def journal(self, account: str) -> list[Row]:
        """An account's entries by sequence."""
        return [
            Row(row["seq"], row["c"], row["kind"], row["t"], row["body"], row["hash"])
            for row in await self._connection.fetch(
                "SELECT seq, command_id::text AS c, kind, body, hash,"
                " to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS t"
                " FROM journal WHERE account_id = $1 ORDER BY seq",
                account,
                timeout=120,
            )
        ]
