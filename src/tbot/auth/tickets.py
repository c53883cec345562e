"""Tickets: what a web page shows in place of its access token where a token must not go.

A browser cannot add headers to a WebSocket or an EventSource, and an address ends up in logs. So
the page asks for a ticket with its token, and shows that: it is good once, for some seconds, in
whichever process, and for no more than the token was: the same user, session, scopes and end.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from tbot.auth import scopes
from tbot.auth.flow import Auth, Principal
from tbot.auth.scopes import Scope
from tbot.core.errors import InsufficientScope, InvalidToken, KeyNotAllowed, Overloaded

PREFIX: Final = "tbt_"
_TICKET: Final = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
_SWEPT_AT_ONCE: Final = 100

# An array, not IN: a planner that does not know the limit would join with the whole table.
_SWEEP: Final = """DELETE FROM stream_tickets WHERE hash = ANY(ARRAY(
 SELECT hash FROM stream_tickets WHERE expires_at <= now() ORDER BY expires_at LIMIT $1))"""
_INSERT: Final = """INSERT INTO stream_tickets
 (hash, user_id, session_id, scope, token_expires_at_s, expires_at)
 SELECT $1, $2, $3, $4, $5, now() + $6::interval
 WHERE (SELECT count(*) FROM stream_tickets WHERE user_id = $2 AND expires_at > now()) < $7
 RETURNING expires_at"""
_TAKE: Final = """DELETE FROM stream_tickets WHERE hash = $1
 RETURNING user_id, session_id, scope, token_expires_at_s, expires_at > now() AS fresh"""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket that was issued."""

    text: str = field(repr=False)
    expires_at: datetime
    scopes: frozenset[Scope]


async def issue(
    auth: Auth, principal: Principal, scope: str, ttl_s: float, tickets_max: int
) -> Ticket:
    """Issue a ticket.

    Args:
        scope: Scopes that it is to cover, separated by spaces; empty for all of the token's.
        ttl_s: How long it is good.
        tickets_max: Unused ones that a user may have.

    Raises:
        KeyNotAllowed: It is an API key's call.
        InsufficientScope: The token does not cover a scope that is asked for.
        Overloaded: The user has too many unused ones.
    """
    if principal.key is not None:
        raise KeyNotAllowed("an API key may not have tickets: it may log in to the stream itself")
    covered = principal.scopes
    if scope:
        covered = scopes.parse(scope)
        lacking = [name for name in scope.split() if name not in principal.scopes]
        if lacking or not covered:
            # What is no scope at all is not repeated: it may be anything, a secret too.
            known = [name for name in lacking if name in set(scopes.Scope)]
            raise InsufficientScope(known[0] if known else "unknown")
    text = PREFIX + secrets.token_urlsafe(32)
    async with auth.pool.acquire() as connection:
        await connection.execute(_SWEEP, _SWEPT_AT_ONCE)
        expires_at = await connection.fetchval(
            _INSERT,
            _hash(text),
            principal.user_id,
            principal.session_id,
            scopes.text(covered),
            principal.expires_at_s,
            timedelta(seconds=ttl_s),
            tickets_max,
        )
    if expires_at is None:
        raise Overloaded("too many tickets that nobody used", retry_after_s=ttl_s)
    return Ticket(text, expires_at, covered)


async def redeem(auth: Auth, text: str) -> Principal:
    """Take a ticket, for good; who shows it, is who asked for it.

    Raises:
        InvalidToken: It is unknown, used, too old, or its session is over.
    """
    if not _TICKET.fullmatch(text):
        raise InvalidToken("not a ticket")
    async with auth.pool.acquire() as connection:
        row = await connection.fetchrow(_TAKE, _hash(text))
    if row is None or not row["fresh"] or row["token_expires_at_s"] <= auth.clock():
        raise InvalidToken("the ticket is unknown, used or too old")
    if not await auth.sessions.lives(row["session_id"], row["user_id"]):
        raise InvalidToken("the session is over")
    return Principal(
        row["user_id"], row["session_id"], scopes.parse(row["scope"]), row["token_expires_at_s"]
    )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
