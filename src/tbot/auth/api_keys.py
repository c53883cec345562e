"""API keys: made for a user, shown once, stored hashed, believed for a few seconds.

A key allows what both it and its owner's role allow, from the addresses it is bound to, until it
expires, is revoked, or its owner is disabled. As with sessions, the database's answer is believed
for `session_cache_s`, forgotten at once where a key is revoked, and asked for anew elsewhere at the
latest when that time is over.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg
import msgspec

from tbot.auth import store
from tbot.auth.scopes import SCOPES_OF, Role, Scope, parse, text
from tbot.auth.store import Connection
from tbot.core.cache import Cache, Form, Shared

PREFIX: Final = "tbk_"
ADDRESSES_MAX: Final = 32
"""Networks that a key may be bound to."""
SEEN_MAX: Final = 64
"""Addresses of a key that are remembered, of those it is good from and of the others each."""
_KEY: Final = re.compile(r"tbk_[A-Za-z0-9_-]{43}", re.ASCII)
_COLUMNS: Final = (
    "id, user_id, name, hint, scope, addresses, created_at, expires_at, last_used_at, last_address"
)

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as its owner sees it: all but the key itself."""

    id: UUID
    user_id: UUID
    name: str
    hint: str
    scopes: frozenset[Scope]
    addresses: tuple[str, ...]
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    last_address: str | None

    @staticmethod
    def from_row(row: asyncpg.Record) -> ApiKey:
        """A key from a row of `_COLUMNS`."""
        members = {**row, "scopes": parse(row["scope"]), "addresses": tuple(row["addresses"])}
        del members["scope"]
        return ApiKey(**members)


@dataclass(slots=True)
class KeyFacts:
    """What a request with a key is checked against.

    Attributes:
        scopes: Of the key and of its owner's role at once.
        seen: Addresses that its owner's security events know of: (address, whether it is allowed).
    """

    id: UUID
    user_id: UUID
    name: str
    scopes: frozenset[Scope]
    networks: tuple[Network, ...]
    expires_at_s: int
    seen: set[tuple[str, bool]] = field(default_factory=set)

    def allows(self, address: str | None) -> bool:
        """Whether it is good from this address."""
        if not self.networks:
            return True
        parsed = parsed_address(address)
        return parsed is not None and any(
            parsed.version == network.version and parsed in network for network in self.networks
        )


def parsed_address(
    address: str | None,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address; IPv4 in an IPv6 socket's notation is IPv4."""
    if address is None:
        return None
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


def new_key() -> str:
    """A new key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def is_key(token: str) -> bool:
    """Whether a token says that it is an API key."""
    return token.startswith(PREFIX)


def hash_of(key: str) -> bytes | None:
    """The SHA-256 that a key is stored under; None for what cannot be one of ours."""
    return hashlib.sha256(key.encode("ascii")).digest() if _KEY.fullmatch(key) else None


# The tables


async def insert(
    connection: Connection,
    key_id: UUID,
    user_id: UUID,
    name: str,
    key: str,
    scopes: frozenset[Scope],
    addresses: Sequence[str],
    ttl_s: int,
) -> ApiKey | None:
    """Store a key; None when the user has one of this name."""
    row = await connection.fetchrow(
        f"""
        INSERT INTO api_keys
            (id, user_id, name, hash, hint, scope, addresses, created_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, now(), now() + $8::interval)
        ON CONFLICT (user_id, name) WHERE revoked_at IS NULL DO NOTHING
        RETURNING {_COLUMNS}
        """,
        key_id,
        user_id,
        name,
        hash_of(key),
        key[: len(PREFIX) + 4],
        text(scopes),
        list(addresses),
        timedelta(seconds=ttl_s),
    )
    return None if row is None else ApiKey.from_row(row)


async def count(connection: Connection, user_id: UUID) -> int:
    """How many keys of a user are not revoked."""
    number: int = await connection.fetchval(
        "SELECT count(*) FROM api_keys WHERE user_id = $1 AND revoked_at IS NULL", user_id
    )
    return number


async def listed(connection: Connection, user_id: UUID) -> list[ApiKey]:
    """A user's keys that are not revoked, oldest first; at most `auth.keys_max`."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM api_keys WHERE user_id = $1 AND revoked_at IS NULL ORDER BY id",
        user_id,
    )
    return [ApiKey.from_row(row) for row in rows]


async def get(connection: Connection, key_id: UUID, user_id: UUID) -> ApiKey | None:
    """One of a user's keys, unless it is revoked."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM api_keys WHERE id = $1 AND user_id = $2 AND revoked_at IS NULL",
        key_id,
        user_id,
    )
    return None if row is None else ApiKey.from_row(row)


async def revoke(connection: Connection, key_id: UUID, user_id: UUID) -> str | None:
    """Revoke one of a user's keys; its name, or None when there was nothing to revoke."""
    name: str | None = await connection.fetchval(
        "UPDATE api_keys SET revoked_at = now()"
        " WHERE id = $1 AND user_id = $2 AND revoked_at IS NULL RETURNING name",
        key_id,
        user_id,
    )
    if name is not None:
        await store.notify_ended(connection, user_id)
    return name


async def revoke_all(connection: Connection, user_id: UUID) -> int:
    """Revoke every key of a user; how many there were."""
    answer = await connection.execute(
        "UPDATE api_keys SET revoked_at = now() WHERE user_id = $1 AND revoked_at IS NULL", user_id
    )
    await store.notify_ended(connection, user_id)
    return int(answer.rpartition(" ")[2])


async def note_address(connection: Connection, key_id: UUID, address: str, allowed: bool) -> bool:
    """Remember where a key was used from; whether that was news."""
    answer = await connection.execute(
        "INSERT INTO api_key_addresses (key_id, address, allowed, first_at)"
        " SELECT $1, $2, $3, now() WHERE (SELECT count(*) FROM api_key_addresses"
        "  WHERE key_id = $1 AND allowed = $3) < $4 ON CONFLICT DO NOTHING",
        key_id,
        address,
        allowed,
        SEEN_MAX,
    )
    return answer == "INSERT 0 1"


async def touch(connection: Connection, used: dict[UUID, tuple[float, str | None]]) -> None:
    """Write down when (seconds since the epoch) and from where keys were last used."""
    ids = sorted(used)
    await connection.execute(
        "UPDATE api_keys k SET last_used_at = greatest(k.last_used_at, to_timestamp(u.at)),"
        " last_address = coalesce(u.address, k.last_address)"
        " FROM unnest($1::uuid[], $2::float8[], $3::text[]) AS u (id, at, address)"
        " WHERE k.id = u.id",
        ids,
        [used[key_id][0] for key_id in ids],
        [used[key_id][1] for key_id in ids],
    )


async def find(connection: Connection, digest: bytes) -> KeyFacts | None:
    """What to check a key against; None when it is not good."""
    row = await connection.fetchrow(
        """
        SELECT k.id, k.user_id, k.name, k.scope, k.addresses, k.expires_at, u.role
        FROM api_keys k JOIN users u ON u.id = k.user_id
        WHERE k.hash = $1 AND k.revoked_at IS NULL AND k.expires_at > now()
          AND u.status = 'active'
        """,
        digest,
    )
    if row is None:
        return None
    seen = await connection.fetch(
        "SELECT address, allowed FROM api_key_addresses WHERE key_id = $1", row["id"]
    )
    return KeyFacts(
        id=row["id"],
        user_id=row["user_id"],
        name=row["name"],
        scopes=parse(row["scope"]) & SCOPES_OF[Role(row["role"])],
        networks=tuple(ipaddress.ip_network(one) for one in row["addresses"]),
        expires_at_s=int(row["expires_at"].timestamp()),
        seen={(one["address"], one["allowed"]) for one in seen},
    )


type _Told = tuple[UUID, UUID, str, str, list[str], int, list[tuple[str, bool]]]


def _encode(facts: KeyFacts | None) -> bytes | None:
    if facts is None:
        return None
    networks = [str(network) for network in facts.networks]
    told: _Told = (
        facts.id,
        facts.user_id,
        facts.name,
        text(facts.scopes),
        networks,
        facts.expires_at_s,
        list(facts.seen),
    )
    return msgspec.json.encode(told)


def _decode(content: bytes) -> KeyFacts | None:
    told: _Told = msgspec.json.decode(content, type=_Told.__value__)
    key_id, user_id, name, scope, networks, expires_at_s, seen = told
    return KeyFacts(
        key_id,
        user_id,
        name,
        parse(scope),
        tuple(ipaddress.ip_network(one) for one in networks),
        expires_at_s,
        set(seen),
    )


class ApiKeys:
    """A cache in front of `find`.

    Keys that are not good are remembered too, so a flood of one wrong key costs a query in
    `ttl_s`. A flood of different wrong ones costs a query each, and nothing is kept of them but
    the youngest `size_max`, in this process.

    Attributes:
        used: When and from where keys were used since that was last written down.
    """

    def __init__(
        self, pool: store.Pool, ttl_s: float, size_max: int, shared: Shared | None = None
    ) -> None:
        self._pool = pool
        self._size_max = size_max
        self.cache: Cache[bytes, KeyFacts | None] = Cache(
            "api_keys",
            self._ask,
            ttl_s=ttl_s,
            size_max=size_max,
            shared=shared,
            form=Form(key=bytes.hex, encode=_encode, decode=_decode),
            group=lambda _digest, facts: None if facts is None else facts.user_id,
        )
        self.used: dict[UUID, tuple[float, str | None]] = {}

    async def find(self, key: str) -> KeyFacts | None:
        """What to check a request with this key against, as of at most `ttl_s` ago."""
        digest = hash_of(key)
        return None if digest is None else await self.cache.get(digest)

    def forget(self, *user_ids: UUID) -> None:
        """Believe nothing of these users' keys any more, or (none given) of anybody's."""
        self.cache.forget(*user_ids)

    def note(self, facts: KeyFacts, now_s: float, address: str | None) -> None:
        """Remember that a key was used, to be written down later."""
        if facts.id in self.used or len(self.used) < self._size_max:
            self.used[facts.id] = (now_s, address)

    async def _ask(self, digest: bytes) -> KeyFacts | None:
        async with self._pool.acquire() as connection:
            return await find(connection, digest)
