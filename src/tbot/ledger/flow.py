"""Opening and changing accounts: what the edge calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg

from tbot.core import money
from tbot.core.errors import NotFound
from tbot.core.ids import named_id, new_id
from tbot.core.refusals import Reason, Refused
from tbot.core.settings import LedgerSettings
from tbot.journal.commands import Accepted, Actor
from tbot.journal.committer import Committer
from tbot.journal.once import Kept, Once, replayed
from tbot.ledger.assets import Assets
from tbot.ledger.entries import (
    Account,
    AccountAt,
    ChangeAccount,
    LimitChanges,
    Limits,
    OpenAccount,
    kind_of,
)
from tbot.ledger.transfers import TransferFacts
from tbot.venues.base import Venue


@dataclass(frozen=True, slots=True)
class AccountFacts:
    """What never changes about an account."""

    account_id: UUID
    owner_id: UUID
    venue: str | None

    @property
    def kind(self) -> str:
        """`trading` or `cash`."""
        return kind_of(self.venue)


@dataclass(frozen=True, slots=True)
class AccountDesk:
    """What the functions below need.

    Attributes:
        venues: By name; only their `deposit` is used here.
        facts_kept_max: Accounts, and transfers, whose facts are remembered; then all are
            forgotten.
        transfers_known: Facts of transfers; see `tbot.ledger.transfers_flow`.
        settings: Limits of transfers.
        assets: What amounts are checked against.
    """

    pool: asyncpg.Pool[asyncpg.Record]
    committer: Committer
    venues: Mapping[str, Venue]
    default_limits: Limits
    _facts: dict[UUID, AccountFacts] = field(default_factory=dict)
    _known: dict[str, AccountFacts] = field(default_factory=dict)
    facts_kept_max: int = 100_000
    transfers_known: dict[UUID, TransferFacts] = field(default_factory=dict)
    settings: LedgerSettings = field(default_factory=LedgerSettings)
    assets: Assets = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "assets", Assets(self.pool))

    def known(self, text: str) -> AccountFacts | None:
        """The facts of the account that has this canonical id, if they were read before."""
        return self._known.get(text)

    def fit(self, target_id: UUID, asset: str, amount: Decimal) -> bool:
        """Whether memory says that money can go to this account; False is no verdict."""
        return target_id in self._facts and self.assets.fits(asset, amount)

    def remembered(self, account_id: UUID) -> AccountFacts | None:
        """The facts of an account in memory; None says to ask for its `facts`."""
        return self._facts.get(account_id)

    async def facts(self, account_id: UUID) -> AccountFacts:
        """Owner and venue of an account, from memory once they were read.

        Raises:
            NotFound: No such account.
        """
        known = self._facts.get(account_id)
        if known is not None:
            return known
        await self.know([account_id])
        known = self._facts.get(account_id)
        if known is None:
            raise NotFound("no such account")
        return known

    async def know(self, account_ids: Iterable[UUID]) -> None:
        """Read the facts of accounts that are not in memory yet, of all at once."""
        wanted = [account_id for account_id in account_ids if account_id not in self._facts]
        if not wanted:
            return
        rows = await self.pool.fetch(
            "SELECT id, owner_id, venue FROM accounts WHERE id = ANY($1::uuid[])", wanted
        )
        if len(self._facts) + len(rows) > self.facts_kept_max:
            self._facts.clear()
            self._known.clear()
        for row in rows:
            facts = AccountFacts(row["id"], row["owner_id"], row["venue"])
            self._facts[facts.account_id] = facts
            self._known[str(facts.account_id)] = facts


async def open_account(
    desk: AccountDesk,
    actor: Actor,
    owner_id: UUID,
    name: str,
    venue: str | None,
    deposits: Mapping[str, Decimal],
    limits: Limits | None = None,
    account_id: UUID | None = None,
    once: Once | None = None,
) -> Account | Refused | Kept:
    """Open a paper account with a starting balance, or (without a venue) an empty cash account.

    The paper venue is given the funds first, under an id made from the account's; then the ledger
    says so. A crash in between leaves the venue richer than the ledger, never the other way
    round, and repeating the call under the same `account_id` repairs it.

    Args:
        venue: None opens a cash account, whose money comes by deposits and transfers only.
        deposits: asset → amount (> 0) within the asset's scale.
        limits: None takes the default.
        account_id: Chosen by the caller to be able to repeat the call; None makes a new one, or
            under a key (`once`) the one that belongs to the key.

    Raises:
        VenueError: The venue could not be given the funds; nothing was opened.
        Unavailable, OutcomeUnknown: See `Committer.commit`.
    """
    if once is not None:
        # Looked for before the venue is given anything; the commit looks again, under the lock.
        async with desk.pool.acquire() as connection:
            replay = await replayed(connection, once)
        if replay is not None:
            return replay
        account_id = named_id(once.key.bytes)
    account_id = account_id or new_id()
    if venue is None:
        if deposits:
            return Refused(Reason.ACCOUNT_KIND, "a cash account starts with nothing")
    else:
        exchange = desk.venues.get(venue)
        if exchange is None or not exchange.capabilities.deposits:
            return Refused(Reason.VENUE_UNKNOWN, f"no paper venue is called {venue}")
        wrong = await desk.assets.check(deposits.items())
        if wrong is not None:
            return wrong
        for asset, amount in sorted(deposits.items()):
            await exchange.deposit(f"{account_id}:{asset}:{money.text(amount)}", asset, amount)
    outcome = await desk.committer.commit(
        OpenAccount(
            id=new_id(),
            actor=actor,
            account_id=account_id,
            owner_id=owner_id,
            name=name,
            venue=venue,
            limits=limits or desk.default_limits,
            deposits=deposits,
        ),
        once,
    )
    return outcome.result if isinstance(outcome, Accepted) else outcome


async def change_account(
    desk: AccountDesk,
    actor: Actor,
    account_id: UUID,
    limits: LimitChanges | None = None,
    status: str | None = None,
    name: str | None = None,
    once: Once | None = None,
    versions: frozenset[str] | None = None,
) -> AccountAt | Refused | Kept:
    """Change an account's limits, status or name; None leaves one as it is.

    Who may change what is the caller's business.

    Args:
        versions: Refused unless the account is at one of these (`entries.version_of`).

    Raises:
        NotFound: No such account.
        Unavailable, OutcomeUnknown: See `Committer.commit`.
    """
    command: Any = ChangeAccount(new_id(), actor, account_id, limits, status, name, versions)
    outcome = await desk.committer.commit(command, once)
    if not isinstance(outcome, Accepted):
        return outcome
    changed: AccountAt = outcome.result
    return changed
