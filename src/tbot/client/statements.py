"""Statements of accounts: `client.statements`.

    async for movement in client.statements.movements(account_id, begin=november):
        print(movement.at, movement.kind, movement.amount, movement.asset, movement.total)

    await client.statements.download(account_id, Path("november.csv"), begin=november, end=december)

Opening balance + movements = closing balance, for each asset.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal
from uuid import UUID

from tbot.client.http import Api, save
from tbot.client.models import Balance

type Moment = datetime | str
"""An instant: an aware `datetime`, or RFC 3339 text."""
type FileFormat = Literal["csv", "ndjson"]

_ACCEPT: Final = {"csv": "text/csv", "ndjson": "application/x-ndjson"}


@dataclass(frozen=True, slots=True)
class Movement:
    """How one entry of the journal changed one asset.

    Attributes:
        sequence: The entry's.
        amount: Change of the total; zero for a hold and its release.
        total, available, held: After the entry.
        counterpart: A counter-account, or the other account of a transfer.
        reference_kind, reference: The order, transfer or payment that it belongs to.
    """

    sequence: int
    at: datetime
    kind: str
    asset: str
    amount: Decimal
    available_change: Decimal
    held_change: Decimal
    total: Decimal
    available: Decimal
    held: Decimal
    command_id: UUID
    counterpart: str | None = None
    reference_kind: str | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class StatedBalances:
    """Balances at one end of a statement."""

    sequence: int
    balances: list[Balance]


@dataclass(frozen=True, slots=True)
class StatementEnds:
    """What an account had before and after a span of time."""

    account_id: UUID
    to: datetime
    opening: StatedBalances
    closing: StatedBalances


class Statements:
    """Statements, and whole lists as files.

    Args:
        api: Of the client that this belongs to.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    async def ends(
        self, account_id: UUID | str, *, begin: Moment | None = None, end: Moment | None = None
    ) -> StatementEnds:
        """Opening and closing balances.

        Args:
            begin: The first moment; None is the account's beginning.
            end: The first moment after it; None is now.
        """
        params = {**_span(begin, end), "limit": 1}
        return await self._api.request(StatementEnds, "GET", _path(account_id), params=params)

    def movements(
        self,
        account_id: UUID | str,
        *,
        begin: Moment | None = None,
        end: Moment | None = None,
        asset: str | None = None,
        holds: bool = True,
    ) -> AsyncIterator[Movement]:
        """Every movement, oldest first, page by page.

        Args:
            asset: Only this one.
            holds: Also what only went between available and held.
        """
        params = {**_span(begin, end), **_filters(asset, holds)}
        return self._api.pages(Movement, _path(account_id), params)

    def stream(
        self,
        account_id: UUID | str,
        *,
        begin: Moment | None = None,
        end: Moment | None = None,
        asset: str | None = None,
        holds: bool = True,
        format: FileFormat = "csv",
    ) -> AsyncIterator[bytes]:
        """The whole statement as a file, in chunks as they come, however long it is.

        Raises:
            Unavailable: It could not begin, or broke off: what came is not the whole.
        """
        params = {**_span(begin, end), **_filters(asset, holds)}
        return self._api.stream(_path(account_id), params, _ACCEPT[format])

    def journal(
        self, account_id: UUID | str, *, after: int = 0, format: FileFormat = "ndjson"
    ) -> AsyncIterator[bytes]:
        """An account's journal after an entry as a file, in chunks."""
        path = f"/v1/accounts/{account_id}/journal"
        return self._api.stream(path, {"after": after}, _ACCEPT[format])

    def fills(
        self, account_id: UUID | str, *, symbol: str | None = None, format: FileFormat = "csv"
    ) -> AsyncIterator[bytes]:
        """An account's fills as a file, newest first, in chunks."""
        path = f"/v1/accounts/{account_id}/fills"
        return self._api.stream(path, {"symbol": symbol}, _ACCEPT[format])

    async def download(
        self,
        account_id: UUID | str,
        target: Path,
        *,
        begin: Moment | None = None,
        end: Moment | None = None,
        format: FileFormat = "csv",
    ) -> int:
        """Write a statement to a file, which appears when it is complete; its size in bytes.

        Raises:
            Unavailable: As for `stream`; an older file of that name is left as it was.
        """
        return await save(self.stream(account_id, begin=begin, end=end, format=format), target)


def _path(account_id: UUID | str) -> str:
    return f"/v1/accounts/{account_id}/statement"


def _filters(asset: str | None, holds: bool) -> dict[str, Any]:
    return {"asset": asset, "holds": None if holds else "false"}


def _span(begin: Moment | None, end: Moment | None) -> dict[str, Any]:
    return {"from": moment_text(begin), "to": moment_text(end)}


def moment_text(moment: Moment | None) -> str | None:
    """An instant as the server takes it.

    Example:
        >>> moment_text(datetime(2026, 11, 1, tzinfo=UTC))
        '2026-11-01T00:00:00+00:00'
    """
    if not isinstance(moment, datetime):
        return moment
    if moment.tzinfo is None:
        raise ValueError("a moment needs a time zone: datetime.now(UTC), for example")
    return moment.astimezone(UTC).isoformat()
