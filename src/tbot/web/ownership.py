"""Whose things are whose: the one place that decides it for REST.

Somebody else's account, or an order on one, answers exactly as one that does not exist.
"""

from __future__ import annotations

from uuid import UUID

from tbot.auth.flow import Principal
from tbot.auth.scopes import Scope
from tbot.core.errors import NotFound
from tbot.ledger.flow import AccountFacts
from tbot.orders import flow
from tbot.orders.model import Order
from tbot.web.deps import Deps


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


def is_admin(principal: Principal) -> bool:
    """Whether the asker's token is an administrator's."""
    return Scope.ADMIN in principal.scopes


async def own_order(deps: Deps, principal: Principal, order_id: UUID) -> Order:
    """The asker's own order, as it is now.

    Raises:
        NotFound: No such order, or on somebody else's account.
    """
    return await flow.owned_order(deps.orders, order_id, principal.user_id)
