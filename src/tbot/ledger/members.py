"""With whom an account is shared, and as what: pure.

Entry points: `Members` (an account's part), `apply`, `ShareAccount`.

An account has one owner, who never changes; members are others, each in one role. A change is an
entry of the account's journal and, in the same commit, one in the security streams of who made it
and of whom it is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Final
from uuid import UUID

from tbot.core.refusals import Reason, Refused
from tbot.journal.chain import Entry
from tbot.journal.commands import (
    AccountState,
    Actor,
    Context,
    Draft,
    Drafts,
    Priority,
    States,
)
from tbot.ledger.entries import CLOSED, Ledger

TOPIC: Final = "sharing"
"""Bus topic that says: somebody's role changed. `sharing:<account>` says on which account."""
_SHARED: Final = "account.shared"
_UNSHARED: Final = "account.unshared"
_EVENT: Final = "security.sharing_changed"


class Access(IntEnum):
    """What somebody may do with an account; each allows what the ones before it do."""

    READ = 1
    TRADE = 2
    """Place and cancel orders."""
    OWN = 3
    """Everything: move money, change the account, share it."""


class MemberRole(StrEnum):
    """What somebody else is to an account."""

    VIEWER = "viewer"
    TRADER = "trader"
    OWNER = "owner"

    @property
    def access(self) -> Access:
        """What the role allows."""
        return _ACCESS[self]


_ACCESS: Final = {
    MemberRole.VIEWER: Access.READ,
    MemberRole.TRADER: Access.TRADE,
    MemberRole.OWNER: Access.OWN,
}
ROLE_FOR: Final = {access: role for role, access in _ACCESS.items()}
"""The least role that gives an access."""


class Members:
    """Changes of an account's members, as part of its state.

    Attributes:
        changed: user → role and since when (None: not a member any more), of what is not in the
            table yet; in a replay, of everything.
    """

    __slots__ = ("changed",)

    def __init__(self) -> None:
        self.changed: dict[UUID, tuple[str, str] | None] = {}


def apply(state: AccountState, entry: Entry) -> None:
    """Carry out an entry about a member."""
    if entry.kind == _SHARED:
        user_id = UUID(entry.data["user"])
        state.part(Members).changed[user_id] = entry.data["role"], entry.at
    elif entry.kind == _UNSHARED:
        state.part(Members).changed[UUID(entry.data["user"])] = None


@dataclass(frozen=True, slots=True)
class ShareAccount:
    """Give somebody a role on an account, or (None) take it away.

    Who may do that, that the account exists, and that this changes something, the caller knows.
    """

    id: UUID
    actor: Actor
    account_id: UUID
    user_id: UUID
    role: MemberRole | None

    priority = Priority.NEW
    opens = True
    """The users' streams may begin here."""

    @property
    def accounts(self) -> tuple[UUID, ...]:
        """The account, and the streams of both users."""
        by = self.actor.user_id
        users = (self.user_id,) if by is None or by == self.user_id else (self.user_id, by)
        return (self.account_id, *users)

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """Write it down."""
        account = states[self.account_id].part(Ledger).account
        assert account is not None, "the caller has read the account"
        if account.status == CLOSED and self.role is not None:
            return Refused(Reason.ACCOUNT_CLOSED, "the account is closed")
        data: dict[str, Any] = {"user": str(self.user_id)}
        if self.role is not None:
            data["role"] = self.role.value
        kind = _UNSHARED if self.role is None else _SHARED
        event = {"account": str(self.account_id), "role": None, **data}
        _, *users = self.accounts
        drafts = [Draft(self.account_id, kind, data)]
        drafts += [Draft(user_id, _EVENT, event) for user_id in users]
        return Drafts(tuple(drafts), (TOPIC, f"{TOPIC}:{self.account_id}"))

    def result(self, states: States) -> UUID:
        """The member."""
        return self.user_id
