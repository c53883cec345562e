"""What happened to a user's login, keys and factors: a hash-chained stream of the user's own.

A user's id names their stream in the journal, beside the accounts'. Its entries move nothing; they
are written in the transaction of what they tell of, so neither is ever there without the other.
`tbot verify` and `tbot audit` check them as they check every stream.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from tbot.auth.principal import Peer
from tbot.auth.store import Connection
from tbot.journal import chain
from tbot.journal.aside import append
from tbot.journal.chain import Entry
from tbot.journal.commands import Actor

LOGIN: Final = "security.login"
LOGIN_FAILED: Final = "security.login_failed"
LOGOUT: Final = "security.logout"
REFRESH_REUSED: Final = "security.refresh_reused"
SESSIONS_ENDED: Final = "security.sessions_ended"
PASSWORD_CHANGED: Final = "security.password_changed"  # noqa: S105 - an event's name
FACTOR_ADDED: Final = "security.factor_added"
FACTOR_REMOVED: Final = "security.factor_removed"
FACTOR_FAILED: Final = "security.factor_failed"
RECOVERY_USED: Final = "security.recovery_code_used"
RECOVERY_MADE: Final = "security.recovery_codes_made"
KEY_CREATED: Final = "security.key_created"
KEY_REVOKED: Final = "security.key_revoked"
KEY_NEW_ADDRESS: Final = "security.key_new_address"
KEY_REFUSED: Final = "security.key_refused"
USER_CREATED: Final = "security.user_created"
USER_CHANGED: Final = "security.user_changed"
SHARING_CHANGED: Final = "security.sharing_changed"  # written by `tbot.ledger.members`


def stranger(peer: Peer) -> Actor:
    """Somebody who has not shown who they are."""
    return Actor("stranger", address=peer.address, request=peer.request)


def user(user_id: UUID, session_id: UUID, peer: Peer) -> Actor:
    """A user within a session."""
    return Actor("user", user_id, str(session_id), peer.address, peer.request)


async def record(
    connection: Connection, user_id: UUID, kind: str, actor: Actor, **data: Any
) -> None:
    """Write an event to a user's stream, as the last thing of a transaction.

    Args:
        data: JSON types; None is left out.
    """
    said = {name: value for name, value in data.items() if value is not None}
    await append(connection, user_id, kind, actor, said)


async def listed(
    connection: Connection, user_id: UUID, before_seq: int | None, limit: int
) -> list[Entry]:
    """A page of a user's events, newest first."""
    rows = await connection.fetch(
        "SELECT body FROM journal WHERE account_id = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3",
        user_id,
        before_seq if before_seq is not None else (1 << 62),
        limit,
    )
    return [chain.read(row["body"]) for row in rows]


def telling(failures: int) -> bool:
    """Whether the n-th failure in a row is worth an event: the 1st, 2nd, 4th, 8th and so on.

    So guessing leaves a trace that says how much there was, and cannot fill a journal.
    """
    return failures & (failures - 1) == 0
