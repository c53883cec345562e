"""Owns the signing keys: makes, shares and rotates them through the database.

Every process on a database has the same keys. The next key is stored long before it signs, so
that all processes have read it by then (they read every `keys_reload_s`, and at once when a token
names a key they do not know); the last one keeps verifying until its youngest token has expired.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog

from tbot.auth import store
from tbot.auth.tokens import CLOCK_SKEW_S, KeyRing, SigningKey
from tbot.core.clock import boot_s
from tbot.core.settings import AuthSettings
from tbot.db.pool import transaction

_log = structlog.get_logger(__name__)

_RELOAD_ON_DEMAND_S: Final = 1.0
"""A flood of tokens with made-up key ids causes at most one query in this time."""


class Keys:
    """The key ring of this process, kept in step with the table.

    Attributes:
        ring: The keys as last read; replaced as a whole.
        cursor_secret: Signs page cursors; shared by all processes.
    """

    def __init__(
        self, pool: store.Pool, settings: AuthSettings, clock: Callable[[], float] = time.time
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._clock = clock
        self._reloading = asyncio.Lock()
        self._reloaded_s = float("-inf")
        self.ring = KeyRing(())
        self.cursor_secret = b""

    async def load(self) -> None:
        """Read the keys, and make the next one when it is due. Called at start and periodically."""
        async with transaction(self._pool) as connection:
            ring = await self._read(connection)
            if self._next_is_due(ring):
                await store.lock_keys(connection)
                ring = await self._read(connection)  # another process may have been faster
                if self._next_is_due(ring):
                    await self._make(connection, ring)
                    ring = await self._read(connection)
            if not self.cursor_secret:
                self.cursor_secret = await store.shared_secret(
                    connection, "cursors", os.urandom(32)
                )
        self.ring = ring
        self._reloaded_s = boot_s()

    async def knows(self, kid: str) -> bool:
        """Whether a key of this id verifies, reading the table again if it is news to us."""
        if self.ring.verifying(kid, self._clock()) is not None:
            return True
        async with self._reloading:
            if boot_s() - self._reloaded_s >= _RELOAD_ON_DEMAND_S:
                await self.load()
        return self.ring.verifying(kid, self._clock()) is not None

    async def retire_all(self) -> None:
        """After a leak: void every access token and sign with a new key from now on.

        Other processes follow within `keys_reload_s`.
        """
        async with transaction(self._pool) as connection:
            await store.lock_keys(connection)
            await store.retire_signing_keys(connection)
        await self.load()
        _log.warning("signing_keys_retired")

    def _next_is_due(self, ring: KeyRing) -> bool:
        lead_s = self._settings.signing_key_ttl_s / 4
        return ring.newest_signs_until_s() - self._clock() < lead_s

    async def _make(self, connection: store.Connection, ring: KeyRing) -> None:
        settings = self._settings
        now_s = self._clock()
        # The next key begins halfway between now and the last one's end; the first begins at once,
        # also for a host whose clock is a little behind ours.
        signs_from_s = max(now_s - CLOCK_SKEW_S, (now_s + ring.newest_signs_until_s()) / 2)
        signs_until_s = signs_from_s + settings.signing_key_ttl_s
        seed = os.urandom(32)
        kid = SigningKey.from_seed(seed, 0, 0, 0).kid
        key = store.KeyRow(
            seed,
            datetime.fromtimestamp(signs_from_s, UTC),
            datetime.fromtimestamp(signs_until_s, UTC),
            datetime.fromtimestamp(signs_until_s + settings.access_ttl_s, UTC),
        )
        await store.insert_signing_key(connection, kid, key)
        await store.delete_retired_keys(connection)
        _log.info("signing_key_made", kid=kid, signs_in_s=round(signs_from_s - now_s))

    async def _read(self, connection: store.Connection) -> KeyRing:
        return KeyRing(
            SigningKey.from_seed(
                row.seed,
                row.signs_from.timestamp(),
                row.signs_until.timestamp(),
                row.retires_at.timestamp(),
            )
            for row in await store.signing_keys(connection)
        )
