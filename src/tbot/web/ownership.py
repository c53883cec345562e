"""Whose things are whose: the one place that decides it for REST.

Somebody else's account, or an order on one, answers exactly as one that does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from tbot.auth.flow import Principal
from tbot.auth.scopes import Scope
from tbot.core.errors import NotFound
from tbot.ledger import store as accounts_store
from tbot.ledger.flow import AccountFacts
from tbot.ledger.transfers import TransferFacts
from tbot.ledger.transfers_flow import facts_of
from tbot.orders import flow
from tbot.orders.model import Order
from tbot.web.deps import Deps

ACCOUNTS_MAX: Final = 1000
"""Accounts of one owner that a list without `account_id` looks through."""


async def own_account(
    deps: Deps, principal: Principal, account_id: UUID, *, admins_too: bool = False
) -> AccountFacts:
    """The facts of the asker's own account; from memory when they were read before.

    Args:
        admins_too: Whether an administrator may do this with anybody's account.

    Raises:
        NotFound: No such account, or somebody else's.
    """
    facts = await deps.orders.accounts.facts(account_id)
    if facts.owner_id == principal.user_id or (admins_too and is_admin(principal)):
        return facts
    raise NotFound("no such account")


async def own_accounts(deps: Deps, principal: Principal, account_id: UUID | None) -> list[UUID]:
    """One account of the asker's, or (None) all of them, at most `ACCOUNTS_MAX`.

    Raises:
        NotFound: No such account, or somebody else's.
    """
    if account_id is not None:
        await own_account(deps, principal, account_id)
        return [account_id]
    async with deps.pool.acquire() as connection:
        own = await accounts_store.list_accounts(connection, principal.user_id, None, ACCOUNTS_MAX)
    return [account.id for account, _ in own]


@dataclass(frozen=True, slots=True)
class TransferSides:
    """On which sides of a transfer the asker is."""

    facts: TransferFacts
    source: bool
    target: bool
    admin: bool


async def own_transfer(deps: Deps, principal: Principal, transfer_id: UUID) -> TransferSides:
    """A transfer out of or into an account of the asker's; any, for an administrator.

    Raises:
        NotFound: No such transfer, or the asker has nothing to do with it.
    """
    accounts = deps.orders.accounts
    facts = await facts_of(accounts, transfer_id)
    source = await accounts.facts(facts.source_id)
    target = await accounts.facts(facts.target_id)
    sides = TransferSides(
        facts,
        source.owner_id == principal.user_id,
        target.owner_id == principal.user_id,
        is_admin(principal),
    )
    if not (sides.source or sides.target or sides.admin):
        raise NotFound("no such transfer")
    return sides


def is_admin(principal: Principal) -> bool:
    """Whether the asker's token is an administrator's."""
    return Scope.ADMIN in principal.scopes


async def own_order(deps: Deps, principal: Principal, order_id: UUID) -> Order:
    """The asker's own order, as it is now.

    Raises:
        NotFound: No such order, or on somebody else's account.
    """
    return await flow.owned_order(deps.orders, order_id, principal.user_id)
