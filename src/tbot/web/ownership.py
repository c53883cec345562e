"""Whose things are whose: the one place that decides it, for REST and for the stream.

An account is used by who opened it, and by its members within their roles (`tbot.ledger.members`).
Everybody else is answered exactly as for one that does not exist; a member whose role is too low
knows of the account already, and is told `insufficient_access`. Auditors (`audit:read`) read
everything and do nothing. Administrators have no access by being that, but for what says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from tbot.auth.flow import Principal
from tbot.auth.scopes import Scope
from tbot.core.errors import InsufficientAccess, NotFound
from tbot.ledger import store as accounts_store
from tbot.ledger.flow import AccountFacts
from tbot.ledger.members import ROLE_FOR, Access
from tbot.ledger.permissions import Permissions
from tbot.ledger.transfers import TransferFacts
from tbot.ledger.transfers_flow import facts_of
from tbot.orders import flow
from tbot.orders.model import Order
from tbot.web.problems import invalid

if TYPE_CHECKING:
    from tbot.web.deps import Deps


async def access_to(
    permissions: Permissions, principal: Principal, account_id: UUID, owner_id: UUID
) -> Access | None:
    """What the asker may do with an account; None for nothing at all.

    A role that was taken away is gone at once in this process, and within `cache.permissions_s` in
    one that misses the news.
    """
    if owner_id == principal.user_id:
        return Access.OWN
    access = await permissions.member_access(account_id, principal.user_id)
    if access is None and Scope.AUDIT_READ in principal.scopes:
        return Access.READ
    return access


async def may_listen(permissions: Permissions, principal: Principal, account_id: UUID) -> bool:
    """Whether the asker may read the account's private stream."""
    async with permissions.pool.acquire() as connection:
        owner_id = await connection.fetchval(
            "SELECT owner_id FROM accounts WHERE id = $1", account_id
        )
    if owner_id is None:
        return False
    return await access_to(permissions, principal, account_id, owner_id) is not None


def owned(deps: Deps, principal: Principal, account_id: UUID) -> AccountFacts | None:
    """The facts of an account that the asker opened, if memory has them; else ask `own_account`."""
    facts = deps.orders.accounts.remembered(account_id)
    return facts if facts is not None and facts.owner_id == principal.user_id else None


async def own_account(
    deps: Deps,
    principal: Principal,
    account_id: UUID,
    *,
    need: Access = Access.OWN,
    admins_too: bool = False,
) -> AccountFacts:
    """The facts of an account that the asker may use; from memory when they were read before.

    Args:
        need: What is to be done with it.
        admins_too: Whether an administrator may do this with anybody's account.

    Raises:
        NotFound: No such account, or somebody else's.
        InsufficientAccess: It is shared with the asker, in too low a role.
    """
    accounts = deps.orders.accounts
    facts = accounts.remembered(account_id) or await accounts.facts(account_id)
    if facts.owner_id == principal.user_id or (admins_too and is_admin(principal)):
        return facts
    access = await access_to(deps.permissions, principal, account_id, facts.owner_id)
    if access is None:
        raise NotFound("no such account")
    if access < need:
        raise InsufficientAccess(ROLE_FOR[need].value)
    return facts


async def own_accounts(deps: Deps, principal: Principal, account_id: UUID | None) -> list[UUID]:
    """One account to be read, or (None) all that the asker opened.

    Raises:
        NotFound: No such account, or somebody else's.
        Problem: The asker has more than a list goes through: part of them would be no answer.
    """
    if account_id is not None:
        await own_account(deps, principal, account_id, need=Access.READ)
        return [account_id]
    most = deps.settings.http.accounts_listed_max
    async with deps.pool.acquire() as connection:
        own = await accounts_store.list_accounts(connection, principal.user_id, None, most + 1)
    if len(own) > most:
        raise invalid(f"name one: you have more than {most}", parameter="account_id")
    return [account.id for account, _ in own]


@dataclass(frozen=True, slots=True)
class TransferSides:
    """On which sides of a transfer the asker may do what is to be done."""

    facts: TransferFacts
    source: bool
    target: bool
    admin: bool


async def own_transfer(
    deps: Deps, principal: Principal, transfer_id: UUID, *, need: Access = Access.OWN
) -> TransferSides:
    """A transfer out of or into an account that the asker may use; any, for an administrator.

    Raises:
        NotFound: No such transfer, or the asker has nothing to do with it.
        InsufficientAccess: The asker may read it, no more.
    """
    accounts = deps.orders.accounts
    facts = await facts_of(accounts, transfer_id)
    found = []
    for account_id in (facts.source_id, facts.target_id):
        owner_id = (await accounts.facts(account_id)).owner_id
        found.append(await access_to(deps.permissions, principal, account_id, owner_id) or 0)
    source, target = found
    sides = TransferSides(facts, source >= need, target >= need, is_admin(principal))
    if not (sides.source or sides.target or sides.admin):
        if max(found):
            raise InsufficientAccess(ROLE_FOR[need].value)
        raise NotFound("no such transfer")
    return sides


def is_admin(principal: Principal) -> bool:
    """Whether the asker's token is an administrator's."""
    return Scope.ADMIN in principal.scopes


async def own_order(
    deps: Deps, principal: Principal, order_id: UUID, *, need: Access = Access.TRADE
) -> Order:
    """An order on an account that the asker may use, as it is now.

    Raises:
        NotFound: No such order, or on somebody else's account.
        InsufficientAccess: The account is shared with the asker, in too low a role.
    """
    order = await flow.owned_order(deps.orders, order_id, None)
    await own_account(deps, principal, order.account_id, need=need)
    return order
