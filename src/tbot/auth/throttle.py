"""Slowing down who guesses passwords and codes, without locking out whom they guess at.

Failures are counted in Postgres, so all processes count together, under three names: one user from
one address, one user from all addresses that are new to them, and one address. The first few cost
nothing; each further one blocks that name for twice as long as the one before, and while a name is
blocked nothing is checked: the answer is 429.

A victim is not locked out by an attacker: from an address that they have logged in from before,
only their own failures there count.

The count is taken after a check failed, so checks that run at the same time all go through: at most
as many as there are places for hashing.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from tbot.auth.store import Connection
from tbot.core.settings import AuthSettings

_UNKNOWN_ADDRESS: Final = "-"
SWEEP_MOST: Final = 5000


@dataclass(frozen=True, slots=True)
class Names:
    """What one attempt is counted under.

    Attributes:
        own: This user from this address.
        account: This user from addresses that are new to them.
        address: This address.
    """

    own: bytes
    account: bytes
    address: bytes


def names(what: str, who: str, address: str | None) -> Names:
    """The names of an attempt.

    Args:
        what: `password` or `factor`.
        who: The user name as it was sent (an unknown one counts as a known one does), or an id.
    """
    where = network(address)
    return Names(
        _digest("own", what, who, where),
        _digest("account", what, who),
        _digest("address", what, where),
    )


def network(address: str | None) -> str:
    """What counts as one address: of IPv6 the network of a site, which one person has whole.

    Example:
        >>> network("2001:db8:1:2:3::1"), network("192.0.2.7"), network(None)
        ('2001:db8:1:2::/64', '192.0.2.7', '-')
    """
    if address is None:
        return _UNKNOWN_ADDRESS
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return _UNKNOWN_ADDRESS
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def _digest(*parts: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16, person=b"tbot:failures")
    for part in parts:
        encoded = part.encode("utf-8", "replace")
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return digest.digest()


def blocked_s(failures: int, free: int, settings: AuthSettings) -> float:
    """How long a name is blocked after this many failures.

    Example:
        >>> [blocked_s(n, 5, AuthSettings()) for n in (4, 5, 6, 40)]
        [0.0, 2.0, 4.0, 900.0]
    """
    if failures < free:
        return 0.0
    doublings = min(failures - free, 32)
    wait_s: float = settings.failures_wait_s * 2**doublings
    return min(wait_s, settings.failures_wait_s_max)


async def wait_s(
    connection: Connection, settings: AuthSettings, named: Names, *, familiar: bool
) -> float:
    """How long to wait before an attempt may be made; 0.0 for at once.

    Args:
        familiar: The address is one of the user's, so that only failures of `own` count.
    """
    limits = {named.own: settings.failures_free}
    if not familiar:
        limits[named.account] = settings.failures_free_account
        limits[named.address] = settings.failures_free_address
    rows = await connection.fetch(
        "SELECT key, failures, extract(epoch FROM clock_timestamp() - at)::float8 AS age_s"
        " FROM login_failures WHERE key = ANY($1::bytea[])",
        list(limits),
    )
    longest = 0.0
    for row in rows:
        blocked = blocked_s(row["failures"], limits[row["key"]], settings)
        longest = max(longest, blocked - row["age_s"])
    return longest


async def failed(connection: Connection, settings: AuthSettings, named: Names) -> int:
    """Count a failure; how many there are of this user from this address."""
    keys: Sequence[bytes] = sorted((named.own, named.account, named.address))
    rows = await connection.fetch(
        """
        INSERT INTO login_failures AS f (key, failures, at)
        SELECT key, 1, clock_timestamp() FROM unnest($1::bytea[]) AS u (key)
        ON CONFLICT (key) DO UPDATE SET
            failures = CASE WHEN f.at < now() - $2::interval THEN 1
                            ELSE least(f.failures, 1000000) + 1 END,
            at = clock_timestamp()
        RETURNING key, failures
        """,
        keys,
        timedelta(seconds=settings.failures_wait_s_max),
    )
    return next(int(row["failures"]) for row in rows if row["key"] == named.own)


async def succeeded(connection: Connection, named: Names) -> None:
    """Forget this user's failures from this address: they know the secret."""
    await connection.execute("DELETE FROM login_failures WHERE key = $1", named.own)


async def sweep(connection: Connection, settings: AuthSettings) -> int:
    """Forget failures whose time is over, a few thousand at a time; how many went."""
    answer = await connection.execute(
        "DELETE FROM login_failures WHERE key = ANY(ARRAY(SELECT key FROM login_failures"
        " WHERE at < now() - $1::interval ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED))",
        timedelta(seconds=settings.failures_wait_s_max),
        SWEEP_MOST,
    )
    return int(answer.rpartition(" ")[2])
