"""What a token may be used for, and which role may ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Self


class Scope(StrEnum):
    """A scope's value travels in tokens; its `doc` is shown in the API's documentation."""

    doc: str

    def __new__(cls, value: str, doc: str) -> Self:
        """Attach the documentation to the member."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        return member

    MARKET_READ = "market:read", "Read instruments and market data."
    ACCOUNT_READ = "account:read", "Read your accounts, balances, positions, fills and journal."
    ACCOUNT_WRITE = "account:write", "Create and change accounts."
    TRANSFERS_WRITE = "transfers:write", "Transfer money, and post, void and reverse transfers."
    ORDERS_READ = "orders:read", "Read your orders."
    ORDERS_WRITE = "orders:write", "Place and cancel orders."
    PAYMENTS_WRITE = "payments:write", "Ask for deposits and withdrawals, and cancel them."
    PAYMENTS_APPROVE = "payments:approve", "See and approve or reject everybody's withdrawals."
    WEBHOOKS_WRITE = "webhooks:write", "Subscribe addresses of yours to your accounts' journals."
    SECURITY_READ = "security:read", "See your sessions, API keys and security events."
    SECURITY_WRITE = (
        "security:write",
        "End sessions, change your password and second factor, make and revoke API keys.",
    )
    SWITCHES_READ = "switches:read", "See the kill switches, and who turned them, when and why."
    SWITCHES_OPERATE = "switches:operate", "Halt and resume trading, withdrawals and transfers."
    AUDIT_READ = "audit:read", "Read everybody's accounts, orders, payments and journals."
    ADMIN = "admin", "Manage users."


class Role(StrEnum):
    """What a user is; a role is a set of scopes."""

    ADMIN = "admin"
    TRADER = "trader"
    VIEWER = "viewer"
    AUDITOR = "auditor"
    SERVICE = "service"
    """A program: it has API keys, made by an administrator, and cannot log in."""


_OTHERS: Final = frozenset(
    {
        Scope.ADMIN,
        Scope.PAYMENTS_APPROVE,
        Scope.SWITCHES_READ,
        Scope.SWITCHES_OPERATE,
        Scope.AUDIT_READ,
    }
)
_READING: Final = frozenset({Scope.MARKET_READ, Scope.ACCOUNT_READ, Scope.ORDERS_READ})
_ONESELF: Final = frozenset({Scope.SECURITY_READ, Scope.SECURITY_WRITE})

SCOPES_OF: Final[Mapping[Role, frozenset[Scope]]] = {
    # Who manages users does not thereby see their money: that is the auditor's.
    Role.ADMIN: frozenset(Scope) - {Scope.AUDIT_READ},
    Role.TRADER: frozenset(Scope) - _OTHERS,
    Role.VIEWER: _READING | _ONESELF,
    Role.AUDITOR: _READING | _ONESELF | {Scope.AUDIT_READ, Scope.SWITCHES_READ},
    Role.SERVICE: frozenset(Scope) - _OTHERS - _ONESELF,
}


def granted(role: Role, asked: str) -> frozenset[Scope]:
    """The scopes that a login gets: what it asked for, as far as its role allows.

    Args:
        asked: Scopes separated by spaces; empty asks for everything. Unknown ones are ignored,
            as OAuth 2.0 section 3.3 allows: the answer says what was granted.

    Example:
        >>> sorted(granted(Role.TRADER, "orders:read admin"))
        [<Scope.ORDERS_READ: 'orders:read'>]
    """
    allowed = SCOPES_OF[role]
    wanted = set(asked.split())
    return frozenset(scope for scope in allowed if scope in wanted) if wanted else allowed


def text(scopes: frozenset[Scope]) -> str:
    """Scopes as OAuth writes them: separated by spaces, in the order of the enum."""
    return " ".join(scope for scope in Scope if scope in scopes)


def parse(value: str) -> frozenset[Scope]:
    """Read scopes from a token of ours; unknown ones (of a newer version) grant nothing here."""
    wanted = set(value.split(" "))
    return frozenset(scope for scope in Scope if scope in wanted)
