"""Second factors and the logins that wait for one: their tables.

Functions take a connection first and commit nothing; those that change something want a
transaction. Whether a code was used before is decided under the lock of the factor's row, so of
several who show the same code, in whatever processes, one wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from tbot.auth import totp
from tbot.auth.sealing import Sealed, Sealing
from tbot.auth.store import Connection

CHALLENGE_FAILURES_MAX: Final = 5
"""Wrong codes that one waiting login survives."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A user's second factor."""

    confirmed_at: datetime | None
    recovery_codes_left: int


@dataclass(frozen=True, slots=True)
class Challenge:
    """A login that waits for its second factor."""

    user_id: UUID
    scope: str


async def find(connection: Connection, user_id: UUID) -> Factor | None:
    """The user's factor, confirmed or not."""
    row = await connection.fetchrow(
        "SELECT confirmed_at, (SELECT count(*) FROM recovery_codes r"
        "  WHERE r.user_id = $1 AND r.used_at IS NULL) AS codes"
        " FROM totp_factors WHERE user_id = $1",
        user_id,
    )
    return None if row is None else Factor(row["confirmed_at"], row["codes"])


async def enrolled(connection: Connection, user_id: UUID) -> bool:
    """Whether the user has a confirmed second factor."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM totp_factors"
        " WHERE user_id = $1 AND confirmed_at IS NOT NULL)",
        user_id,
    )
    return found


async def begin(connection: Connection, user_id: UUID, sealed: Sealed) -> bool:
    """Store a secret to be confirmed; False when there is a confirmed one already."""
    answer = await connection.execute(
        """
        INSERT INTO totp_factors AS f (user_id, secret, sealed_by, created_at, last_step)
        VALUES ($1, $2, $3, now(), 0)
        ON CONFLICT (user_id) DO UPDATE
        SET secret = excluded.secret, sealed_by = excluded.sealed_by, created_at = now()
        WHERE f.confirmed_at IS NULL
        """,
        user_id,
        *sealed,
    )
    return answer == "INSERT 0 1"


async def seal_all(connection: Connection, sealing: Sealing) -> int:
    """Seal what was stored as it is, or sealed by the key before; how many secrets that were.

    Call it at the start, in a transaction: from then on all is sealed that is stored.

    Raises:
        ConfigurationError: Something is sealed by a key that is not given.
        IntegrityError: Something was tampered with.
    """
    rows = await connection.fetch(
        "SELECT user_id, secret, sealed_by FROM totp_factors"
        " WHERE sealed_by IS DISTINCT FROM $1 ORDER BY user_id FOR UPDATE",
        sealing.current,
    )
    sealed = [
        sealing.seal(row["user_id"], sealing.open(row["user_id"], row["secret"], row["sealed_by"]))
        for row in rows
    ]
    if rows:
        await connection.execute(
            "UPDATE totp_factors f SET secret = n.secret, sealed_by = $3"
            " FROM unnest($1::uuid[], $2::bytea[]) AS n (user_id, secret)"
            " WHERE f.user_id = n.user_id",
            [row["user_id"] for row in rows],
            [one.stored for one in sealed],
            sealing.current,
        )
    return len(rows)


async def confirm(
    connection: Connection, sealing: Sealing, user_id: UUID, code: str, now_s: float
) -> bool | None:
    """Confirm a factor by its first code; None when there is none that waits for it."""
    row = await connection.fetchrow(
        "SELECT secret, sealed_by FROM totp_factors"
        " WHERE user_id = $1 AND confirmed_at IS NULL FOR UPDATE",
        user_id,
    )
    if row is None:
        return None
    secret = sealing.open(user_id, row["secret"], row["sealed_by"])
    step = totp.matching_step(secret, code, now_s)
    if step is None:
        return False
    await connection.execute(
        "UPDATE totp_factors SET confirmed_at = now(), last_step = $2 WHERE user_id = $1",
        user_id,
        step,
    )
    return True


async def lock(connection: Connection, user_id: UUID) -> None:
    """Keep others from trying codes of this user until the transaction ends."""
    await connection.execute("SELECT FROM totp_factors WHERE user_id = $1 FOR UPDATE", user_id)


async def use_code(
    connection: Connection, sealing: Sealing, user_id: UUID, code: str, now_s: float
) -> str | None:
    """Use up a code: `totp` or `recovery` says of which kind it was, None that it is not good."""
    row = await connection.fetchrow(
        "SELECT secret, sealed_by, last_step FROM totp_factors"
        " WHERE user_id = $1 AND confirmed_at IS NOT NULL FOR UPDATE",
        user_id,
    )
    if row is None:
        return None
    secret = sealing.open(user_id, row["secret"], row["sealed_by"])
    step = totp.matching_step(secret, code, now_s)
    if step is not None:
        if step <= row["last_step"]:
            return None  # used before, or older than one that was
        await connection.execute(
            "UPDATE totp_factors SET last_step = $2 WHERE user_id = $1", user_id, step
        )
        return "totp"
    digest = totp.recovery_hash(user_id, code)
    if digest is None:
        return None
    answer = await connection.execute(
        "UPDATE recovery_codes SET used_at = now()"
        " WHERE user_id = $1 AND hash = $2 AND used_at IS NULL",
        user_id,
        digest,
    )
    return "recovery" if answer == "UPDATE 1" else None


async def replace_recovery_codes(connection: Connection, user_id: UUID) -> list[str]:
    """New recovery codes; the old ones are void. Shown once: only hashes are stored."""
    codes = totp.new_recovery_codes()
    digests = [totp.recovery_hash(user_id, code) for code in codes]
    await connection.execute("DELETE FROM recovery_codes WHERE user_id = $1", user_id)
    await connection.execute(
        "INSERT INTO recovery_codes (user_id, hash) SELECT $1, unnest($2::bytea[])",
        user_id,
        digests,
    )
    return codes


async def remove(connection: Connection, user_id: UUID) -> bool:
    """Take the factor and its recovery codes away; False when there was none."""
    await connection.execute("DELETE FROM recovery_codes WHERE user_id = $1", user_id)
    answer = await connection.execute("DELETE FROM totp_factors WHERE user_id = $1", user_id)
    return answer != "DELETE 0"


# Logins that wait


async def insert_challenge(
    connection: Connection, token_hash: bytes, user_id: UUID, scope: str, ttl_s: int
) -> None:
    """Store a login that passed the password."""
    await connection.execute(
        "INSERT INTO mfa_challenges (hash, user_id, scope, expires_at, failures)"
        " VALUES ($1, $2, $3, now() + $4::interval, 0)",
        token_hash,
        user_id,
        scope,
        timedelta(seconds=ttl_s),
    )


async def challenge_of(connection: Connection, token_hash: bytes) -> Challenge | None:
    """The login of a token, if it still waits."""
    row = await connection.fetchrow(
        "SELECT user_id, scope FROM mfa_challenges"
        " WHERE hash = $1 AND expires_at > now() AND failures < $2",
        token_hash,
        CHALLENGE_FAILURES_MAX,
    )
    return None if row is None else Challenge(row["user_id"], row["scope"])


async def take_challenge(connection: Connection, token_hash: bytes) -> Challenge | None:
    """End the waiting of a login: of several who try, one gets it, if the transaction commits."""
    row = await connection.fetchrow(
        "DELETE FROM mfa_challenges WHERE hash = $1 AND expires_at > now() AND failures < $2"
        " RETURNING user_id, scope",
        token_hash,
        CHALLENGE_FAILURES_MAX,
    )
    return None if row is None else Challenge(row["user_id"], row["scope"])


async def fail_challenge(connection: Connection, token_hash: bytes) -> None:
    """Count a wrong code against a waiting login."""
    await connection.execute(
        "UPDATE mfa_challenges SET failures = failures + 1 WHERE hash = $1", token_hash
    )


async def drop_challenges(connection: Connection, user_id: UUID) -> None:
    """Void a user's waiting logins: the password that they passed is not the password any more."""
    await connection.execute("DELETE FROM mfa_challenges WHERE user_id = $1", user_id)


async def sweep_challenges(connection: Connection, limit: int = 1000) -> None:
    """Delete waiting logins whose time is over, a few at a time."""
    await connection.execute(
        "DELETE FROM mfa_challenges WHERE hash = ANY(ARRAY(SELECT hash FROM mfa_challenges"
        " WHERE expires_at < now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))",
        limit,
    )
