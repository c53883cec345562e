"""Statements of accounts, balances as of a moment, and what no customer owns."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Query
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.core import clock, money
from tbot.core.money import MoneyText
from tbot.core.refusals import Reason
from tbot.ledger import store
from tbot.ledger.entries import Balance
from tbot.ledger.marks import Running, balances_after, balances_at
from tbot.ledger.members import Access
from tbot.ledger.statements import (
    Filter,
    Movement,
    Place,
    Span,
    entries_between,
    listed,
    movements_after,
    span_between,
)
from tbot.web.answers import json_answer
from tbot.web.dependencies import (
    AccountReader,
    Admin,
    PageCursor,
    PageLimit,
    Parts,
    page_limit,
)
from tbot.web.deps import Deps
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
from tbot.web.fields import Answer, Asset, Id, Moment, Timestamp
from tbot.web.openapi import problems
from tbot.web.ownership import own_account
from tbot.web.pages import Position, decode_cursor, encode_cursor, next_link
from tbot.web.problems import invalid, refused
from tbot.web.routes import router

routes = router("accounts")


class StatedBalance(Answer):
    """What an account has of an asset: `total` is `available` plus `held`."""

    asset: str
    total: MoneyText
    available: MoneyText
    held: MoneyText


class StatedBalances(Answer):
    """Balances at one end of a statement: after the entry `sequence` of the journal."""

    sequence: int
    balances: list[StatedBalance]


class MovementOut(Answer):
    """How one entry of the journal changed one asset."""

    sequence: Annotated[int, Field(description="The journal entry.")]
    at: Timestamp
    kind: Annotated[str, Field(examples=["order.filled"])]
    asset: str
    amount: Annotated[
        MoneyText, Field(description="Change of the total: zero for a hold and its release.")
    ]
    available_change: MoneyText
    held_change: MoneyText
    total: Annotated[MoneyText, Field(description="After the entry, as the next two.")]
    available: MoneyText
    held: MoneyText
    counterpart: Annotated[
        str | None,
        Field(
            description="Where the money came from or went to: a counter-account such as "
            "`venue:paper`, or the id of the other account of a transfer."
        ),
    ]
    reference_kind: Annotated[str | None, Field(examples=["order"])]
    reference: Annotated[str | None, Field(description="Id of that order, transfer or payment.")]
    command_id: Id


class Statement(Answer):
    """A page of an account's statement; `opening` and `closing` are the whole statement's."""

    account_id: Id
    from_: Annotated[Timestamp | None, Field(alias="from", description="Null: from the beginning.")]
    to: Timestamp
    opening: StatedBalances
    closing: StatedBalances
    items: list[MovementOut]
    next: str | None


class CounterOut(Answer):
    """What a counter-account has of an asset; below zero it is what customers have there."""

    name: Annotated[str, Field(examples=["venue:paper"])]
    asset: str
    amount: MoneyText


class CounterPage(Answer):
    """A page of counter-accounts' balances, by name and asset."""

    items: list[CounterOut]
    next: str | None


_COLUMNS: Final = (
    "type", "sequence", "at", "kind", "asset", "amount", "available_change", "held_change",
    "total", "available", "held", "counterpart", "reference_kind", "reference", "command_id",
)  # fmt: skip


def balances_json(balances: Sequence[tuple[str, Balance]]) -> list[dict[str, str]]:
    """Balances as `StatedBalance` describes them."""
    return [
        {
            "asset": asset,
            "total": money.text(balance.total),
            "available": money.text(balance.available),
            "held": money.text(balance.held),
        }
        for asset, balance in balances
    ]


async def past_balances(deps: Deps, account_id: UUID, moment: datetime) -> dict[str, Any]:
    """An account's balances as of a moment, as `Balances` of `tbot.web.accounts` describes them.

    Raises:
        Problem: The moment is yet to come.
    """
    if moment > clock.utc_now():
        raise invalid("lies in the future", parameter="at")
    async with deps.pool.acquire() as connection:
        running = await balances_at(connection, account_id, moment)
    return {
        "account_id": account_id,
        "sequence": running.seq,
        "balances": balances_json(listed(running)),
    }


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a statement was asked for."""

    account_id: UUID
    begin: datetime | None
    end: datetime
    wanted: Filter

    @property
    def from_text(self) -> str | None:
        return None if self.begin is None else clock.stamp(self.begin)


def _movement_json(one: Movement) -> dict[str, Any]:
    return {
        "sequence": one.sequence,
        "at": one.at,
        "kind": one.kind,
        "asset": one.asset,
        "amount": money.text(one.amount),
        "available_change": money.text(one.change.available),
        "held_change": money.text(one.change.held),
        "total": money.text(one.balance.total),
        "available": money.text(one.balance.available),
        "held": money.text(one.balance.held),
        "counterpart": one.counterpart,
        "reference_kind": one.reference_kind,
        "reference": one.reference,
        "command_id": one.command,
    }


def _ends_json(
    kind: str, running: Running, other: Running, asset: str | None, at: str | None
) -> list[dict[str, Any]]:
    """The first or last lines of an export: its opening or closing balances."""
    return [
        {"type": kind, "sequence": running.seq, "at": at, **balance}
        for balance in balances_json(listed(running, asset, other))
    ]


@routes.get(
    "/accounts/{account_id}/statement",
    operation_id="get_statement",
    response_model=Statement,
    responses={
        **EXPORTED,
        **problems("invalid_cursor", "not_acceptable", "overloaded", Reason.ASSET_UNKNOWN),
    },
)
async def get_statement(
    request: HttpRequest,
    parts: Parts,
    principal: AccountReader,
    account_id: Id,
    begin: Annotated[
        Moment | None,
        Query(alias="from", description="Its first moment; default: the account's beginning."),
    ] = None,
    end: Annotated[
        Moment | None,
        Query(alias="to", description="The first moment after it; default: now."),
    ] = None,
    asset: Annotated[Asset | None, Query(description="Only this asset.")] = None,
    holds: Annotated[
        bool, Query(description="Also list what only went between available and held.")
    ] = True,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """Get an account's statement: opening balances, every movement, closing balances.

    Opening balance + movements = closing balance, for each asset; both ends list the same assets.
    A page may have fewer items
    than asked for: follow `next` until it is null. As NDJSON or CSV the statement comes whole:
    lines of `type` `opening`, `movement` and, last, `closing`.
    """
    await own_account(parts, principal, account_id, need=Access.READ)
    form = format_of(request)
    if end is not None and end > clock.utc_now():
        raise invalid("lies in the future", parameter="to")
    if begin is not None and end is not None and end < begin:
        raise invalid("lies before `from`", parameter="to")
    if asset is not None:
        unknown = await parts.orders.accounts.assets.check([(asset, money.ZERO)])
        if unknown is not None:
            raise refused(unknown)
    wanted = Filter(asset, holds)
    if form is Format.JSON:
        size = page_limit(limit, parts)
        return await _page(
            request, parts, principal.user_id, account_id, begin, end, wanted, size, cursor
        )
    refuse_paging(limit, cursor)
    asked = _Asked(account_id, begin, end or clock.utc_now(), wanted)
    chunks = _exported(parts, asked, form)
    return Export(exports_of(request), form, f"statement-{account_id}", chunks)


async def _page(
    request: HttpRequest,
    parts: Deps,
    reader: UUID,
    account_id: UUID,
    begin: datetime | None,
    end: datetime | None,
    wanted: Filter,
    size: int,
    cursor: str | None,
) -> Response:
    filters = {
        name: value
        for name, value in (
            ("from", None if begin is None else clock.stamp(begin)),
            ("to", None if end is None else clock.stamp(end)),
            ("asset", wanted.asset),
            ("holds", None if wanted.holds else "false"),
        )
        if value is not None
    }
    secret, name = parts.auth.keys.cursor_secret, f"statement:{account_id}"
    async with parts.pool.acquire() as connection:
        if cursor is None:
            ends_at = clock.stamp(end or clock.utc_now())
            span, opening, closing = await span_between(
                connection, account_id, begin, clock.unstamp(ends_at)
            )
            place = Place(span.first_seq)
        else:
            # What the first page found: later entries do not move into a statement once begun.
            position = decode_cursor(secret, reader, name, filters, cursor)
            first, last, seq, skip = (int(number) for number in position[:4])
            ends_at = str(position[4])
            span, place = Span(account_id, first, last), Place(seq, skip)
            opening = await balances_after(connection, account_id, first)
            closing = await balances_after(connection, account_id, last)
        found, end_place = await movements_after(connection, span, place, wanted, size)
    headers = {}
    following = None
    if end_place is not None:
        place_in: Position = [span.first_seq, span.last_seq, end_place.seq, end_place.skip, ends_at]
        following = encode_cursor(secret, reader, name, filters, place_in)
        headers["Link"] = next_link(request, filters, size, following)
    ends = [
        {"sequence": one.seq, "balances": balances_json(listed(one, wanted.asset, other))}
        for one, other in ((opening, closing), (closing, opening))
    ]
    answer = {
        "account_id": account_id,
        "from": filters.get("from"),
        "to": ends_at,
        "opening": ends[0],
        "closing": ends[1],
        "items": [_movement_json(one) for one in found],
        "next": following,
    }
    return json_answer(answer, headers=headers)


async def _exported(parts: Deps, asked: _Asked, format: Format) -> AsyncGenerator[bytes]:
    """A statement in chunks; a connection is borrowed for each page only."""
    async with parts.pool.acquire() as connection:
        span, opening, closing = await span_between(
            connection, asked.account_id, asked.begin, asked.end
        )
    encode = ndjson if format is Format.NDJSON else _csv
    if format is Format.CSV:
        yield csv_lines([_COLUMNS])
    asset = asked.wanted.asset
    yield encode(_ends_json("opening", opening, closing, asset, asked.from_text))
    running = opening
    while running.seq < span.last_seq:
        async with parts.pool.acquire() as connection:
            found = await entries_between(connection, running, span.last_seq, asked.wanted)
        if found:
            yield encode([{"type": "movement", **_movement_json(one)} for one in found])
    yield encode(_ends_json("closing", closing, opening, asset, clock.stamp(asked.end)))


_TEXTS: Final = frozenset({"kind", "counterpart", "reference_kind", "reference"})


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    return csv_lines(
        [
            [harmless(row.get(name)) if name in _TEXTS else row.get(name, "") for name in _COLUMNS]
            for row in rows
        ]
    )


@routes.get(
    "/ledger/counters",
    operation_id="list_counters",
    response_model=CounterPage,
    responses=problems("invalid_cursor"),
)
async def list_counters(
    request: HttpRequest,
    parts: Parts,
    principal: Admin,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List what no customer owns: the counter-accounts of venues, fees and the outside world.

    Per asset they and all customers' balances sum to zero.
    """
    size = page_limit(limit, parts)
    secret, reader = parts.auth.keys.cursor_secret, principal.user_id
    after = None
    if cursor is not None:
        name, asset = decode_cursor(secret, reader, "counters", {}, cursor)
        after = str(name), str(asset)
    async with parts.pool.acquire() as connection:
        found = await store.list_counters(connection, after, size + 1)
    headers = {}
    following = None
    if len(found) > size:
        following = encode_cursor(secret, reader, "counters", {}, list(found[size - 1][:2]))
        headers["Link"] = next_link(request, {}, size, following)
    items = [
        {"name": name, "asset": asset, "amount": money.text(amount)}
        for name, asset, amount in found[:size]
    ]
    return json_answer({"items": items, "next": following}, headers=headers)
