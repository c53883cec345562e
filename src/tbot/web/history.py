"""What happened on an account: its fills, and its journal."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import Query
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.core import money
from tbot.core.money import MoneyText
from tbot.orders import store
from tbot.orders.model import Fill
from tbot.venues.base import Side
from tbot.web.answers import json_answer
from tbot.web.dependencies import AccountReader, PageCursor, PageLimit, Parts, page_limit
from tbot.web.entries import entries_after
from tbot.web.fields import Answer, Id, Symbol, Timestamp
from tbot.web.openapi import problems
from tbot.web.ownership import own_account
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.routes import router

routes = router("accounts")


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
    responses=problems("invalid_cursor"),
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
    """List an account's fills, newest first."""
    await own_account(parts, principal, account_id)
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
)
async def list_journal(
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
    """
    await own_account(parts, principal, account_id)
    size = page_limit(limit, parts)
    async with parts.pool.acquire() as connection:
        entries, head = await entries_after(connection, account_id, after, size)
    listed = [
        {"seq": entry.seq, "hash": entry.hash.hex(), "entry": msgspec.Raw(entry.body)}
        for entry in entries
    ]
    return json_answer({"entries": listed, "head": head})
