"""What happened on an account: its fills, and its journal; as pages, or whole as NDJSON or CSV."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from fastapi import Query
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.core import money
from tbot.core.money import MoneyText
from tbot.journal import chain
from tbot.ledger.members import Access
from tbot.orders import store
from tbot.orders.model import Fill
from tbot.venues.base import Side
from tbot.web.answers import json_answer
from tbot.web.dependencies import AccountReader, PageCursor, PageLimit, Parts, page_limit
from tbot.web.deps import Deps
from tbot.web.entries import StoredEntry, entries_after
from tbot.web.exports import (
    EXPORTED,
    Export,
    Format,
    csv_lines,
    exports_of,
    format_of,
    harmless,
    ndjson,
    refuse_paging,
)
from tbot.web.fields import Answer, Id, Symbol, Timestamp
from tbot.web.openapi import problems
from tbot.web.ownership import own_account
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.routes import router

routes = router("accounts")

EXPORT_PAGE: Final = 256
"""Rows that an export reads at a time: a few milliseconds of the event loop."""


class FillOut(Answer):
    """One execution of one order."""

    trade_id: Annotated[str, Field(description="The venue's; unique within the order.")]
    order_id: Id
    account_id: Id
    symbol: Symbol
    side: Side
    price: MoneyText
    quantity: MoneyText
    quote_quantity: MoneyText
    fee: Annotated[MoneyText, Field(description="Below zero for a rebate.")]
    fee_asset: str
    maker: bool
    at: Timestamp
    sequence: Annotated[int, Field(description="The journal entry that booked it.")]


class FillPage(Answer):
    """A page of fills, newest first."""

    items: list[FillOut]
    next: str | None


class JournalEntry(Answer):
    """One entry with its hash: SHA-256 of the hash before it and the entry's exact bytes."""

    seq: int
    hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    entry: dict[str, Any]


class JournalPage(Answer):
    """Entries of an account's journal, oldest first."""

    entries: list[JournalEntry]
    head: Annotated[int, Field(description="Sequence of the newest entry there is.")]


def _fill_json(fill: Fill) -> dict[str, Any]:
    return {
        "trade_id": fill.trade_id,
        "order_id": fill.order_id,
        "account_id": fill.account_id,
        "symbol": fill.symbol,
        "side": fill.side,
        "price": money.text(fill.price),
        "quantity": money.text(fill.quantity),
        "quote_quantity": money.text(fill.quote_quantity),
        "fee": money.text(fill.fee),
        "fee_asset": fill.fee_asset,
        "maker": fill.maker,
        "at": fill.at,
        "sequence": fill.seq,
    }


@routes.get(
    "/accounts/{account_id}/fills",
    operation_id="list_fills",
    response_model=FillPage,
    responses={**EXPORTED, **problems("invalid_cursor", "not_acceptable", "overloaded")},
)
async def list_fills(
    request: HttpRequest,
    parts: Parts,
    principal: AccountReader,
    account_id: Id,
    symbol: Annotated[Symbol | None, Query()] = None,
    order_id: Annotated[Id | None, Query()] = None,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List an account's fills, newest first. As NDJSON or CSV they all come at once."""
    await own_account(parts, principal, account_id, need=Access.READ)
    form = format_of(request)
    if form is not Format.JSON:
        refuse_paging(limit, cursor)
        chunks = _exported_fills(parts, account_id, symbol, order_id, form)
        return Export(exports_of(request), form, f"fills-{account_id}", chunks)
    size = page_limit(limit, parts)
    given = {"symbol": symbol, "order_id": order_id}
    filters = {name: str(value) for name, value in given.items() if value is not None}
    secret, reader, name = parts.auth.keys.cursor_secret, principal.user_id, f"fills:{account_id}"
    before = None
    if cursor is not None:
        before = int(decode_cursor(secret, reader, name, filters, cursor)[0])
    async with parts.pool.acquire() as connection:
        found = await store.list_fills(
            connection,
            account_id,
            symbol=symbol,
            order_id=order_id,
            before_seq=before,
            limit=size + 1,
        )
    headers = {}
    following = None
    if len(found) > size:
        following = encode_cursor(secret, reader, name, filters, [found[size - 1].seq])
        headers["Link"] = next_link(request, filters, size, following)
    page = {"items": [_fill_json(fill) for fill in found[:size]], "next": following}
    return json_answer(page, headers=headers)


@routes.get(
    "/accounts/{account_id}/journal",
    operation_id="list_journal",
    response_model=JournalPage,
    responses={**EXPORTED, **problems("not_acceptable", "overloaded")},
)
async def list_journal(
    request: HttpRequest,
    parts: Parts,
    principal: AccountReader,
    account_id: Id,
    after: Annotated[
        int, Query(ge=0, le=2**62, description="Only entries with a higher sequence.")
    ] = 0,
    limit: PageLimit = None,
) -> Response:
    """Read an account's journal: everything that ever happened on it, in order.

    Follow it with `after` set to the last `seq` you have. Each hash covers the one before it, so
    nothing can be taken out or changed unnoticed.
    As NDJSON or CSV, everything after `after` comes at once.
    """
    await own_account(parts, principal, account_id, need=Access.READ)
    form = format_of(request)
    if form is not Format.JSON:
        refuse_paging(limit, None)
        chunks = _exported_journal(parts, account_id, after, form)
        return Export(exports_of(request), form, f"journal-{account_id}", chunks)
    size = page_limit(limit, parts)
    async with parts.pool.acquire() as connection:
        entries, head = await entries_after(connection, account_id, after, size)
    listed = [_journal_json(entry) for entry in entries]
    return json_answer({"entries": listed, "head": head})


_JOURNAL_COLUMNS: Final = (
    "seq", "at", "kind", "command_id", "by", "postings", "data", "hash",
)  # fmt: skip


async def _exported_journal(
    parts: Deps, account_id: UUID, after: int, format: Format
) -> AsyncGenerator[bytes]:
    """The journal up to the head that it has when the export begins."""
    async with parts.pool.acquire() as connection:
        _, head = await entries_after(connection, account_id, after, 1)
    if format is Format.CSV:
        yield csv_lines([_JOURNAL_COLUMNS])
    while after < head:
        async with parts.pool.acquire() as connection:
            entries, _ = await entries_after(
                connection, account_id, after, min(EXPORT_PAGE, head - after)
            )
        if not entries:
            return
        after = entries[-1].seq
        if format is Format.CSV:
            yield csv_lines(_journal_cells(entry) for entry in entries)
        else:
            yield ndjson(_journal_json(entry) for entry in entries)


def _journal_json(entry: StoredEntry) -> dict[str, Any]:
    return {"seq": entry.seq, "hash": entry.hash.hex(), "entry": msgspec.Raw(entry.body)}


def _journal_cells(stored: StoredEntry) -> list[Any]:
    entry = chain.read(stored.body)
    structured = (entry.by, entry.postings, entry.data)
    by, postings, data = (harmless(msgspec.json.encode(part).decode()) for part in structured)
    kind = harmless(entry.kind)
    return [entry.seq, entry.at, kind, entry.command, by, postings, data, stored.hash.hex()]


_FILL_COLUMNS: Final = (
    "trade_id", "order_id", "account_id", "symbol", "side", "price", "quantity", "quote_quantity",
    "fee", "fee_asset", "maker", "at", "sequence",
)  # fmt: skip


async def _exported_fills(
    parts: Deps, account_id: UUID, symbol: str | None, order_id: UUID | None, format: Format
) -> AsyncGenerator[bytes]:
    if format is Format.CSV:
        yield csv_lines([_FILL_COLUMNS])
    before = None
    while True:
        async with parts.pool.acquire() as connection:
            found = await store.list_fills(
                connection,
                account_id,
                symbol=symbol,
                order_id=order_id,
                before_seq=before,
                limit=EXPORT_PAGE,
            )
        if found:
            before = found[-1].seq
            yield _fill_lines(found, format)
        if len(found) < EXPORT_PAGE:
            return


def _fill_lines(fills: Sequence[Fill], format: Format) -> bytes:
    # What is made for a page is gone before the next one is read.
    rows = map(_fill_json, fills)
    return ndjson(rows) if format is Format.NDJSON else csv_lines(map(_fill_cells, rows))


def _fill_cells(row: dict[str, Any]) -> list[Any]:
    """A fill's cells; its trade id is the venue's word."""
    cells = {**row, "trade_id": harmless(row["trade_id"]), "maker": str(row["maker"]).lower()}
    return [cells[name] for name in _FILL_COLUMNS]
