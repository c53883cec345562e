"""What a process needs to know who is asking: its keys, its caches, and their upkeep."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import structlog
from pydantic import SecretStr

from tbot.auth import api_keys, factors, session_store, store, throttle
from tbot.auth.api_keys import ApiKeys
from tbot.auth.keys import Keys
from tbot.auth.passwords import Passwords
from tbot.auth.principal import Principal
from tbot.auth.sealing import Sealing
from tbot.auth.sessions import TOPIC, Sessions
from tbot.auth.tokens import AccessClaims
from tbot.core.bus import Bus
from tbot.core.cache import Shared
from tbot.core.errors import TBotError
from tbot.core.settings import AuthSettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS, transaction

_log = structlog.get_logger(__name__)

_SESSIONS_KEPT_S: Final = 86_400


@dataclass(slots=True)
class Auth:
    """The state of authentication in one process.

    Attributes:
        sealing: Of second factors' secrets.
        clock: Wall time in seconds since the epoch; tests replace it.
        verified: Tokens whose signature and claims were found good, by the whole token, with who
            holds them: each use still checks expiry, key and session. Bounded; the oldest goes
            first.
        used: When sessions were last used (seconds since the epoch), since that was last written
            down; a bounded number of them.
    """

    pool: store.Pool
    settings: AuthSettings
    passwords: Passwords
    keys: Keys
    sessions: Sessions
    api_keys: ApiKeys
    bus: Bus
    sealing: Sealing
    clock: Callable[[], float] = time.time
    verified: OrderedDict[str, tuple[AccessClaims, Principal]] = field(default_factory=OrderedDict)
    used: dict[UUID, float] = field(default_factory=dict)


@asynccontextmanager
async def opened(
    pool: store.Pool,
    settings: AuthSettings,
    bus: Bus | None = None,
    clock: Callable[[], float] = time.time,
    shared: Shared | None = None,
) -> AsyncIterator[Auth]:
    """Authentication that is ready: keys are read (or made), and kept up to date until the end.

    Args:
        pool: To a migrated database.
        bus: Tells of sessions that ended in other processes.
        shared: What processes tell each other; None keeps to this one.

    Raises:
        ConfigurationError: Second factors are sealed by a key that is not in the settings.
    """
    tasks = Tasks("auth")
    passwords = Passwords(settings)
    keys = Keys(pool, settings, clock)
    ttl_s = settings.session_cache_s
    sessions = Sessions(pool, ttl_s, settings.sessions_cached_max, shared)
    known = ApiKeys(pool, ttl_s, settings.keys_cached_max, shared)
    sealing = Sealing(_text(settings.factor_key), _text(settings.factor_key_before))
    auth = Auth(pool, settings, passwords, keys, sessions, known, bus or Bus(), sealing, clock)
    auth.bus.hear(TOPIC, lambda user_id: _forget(auth, user_id))
    try:
        await keys.load()
        async with transaction(pool) as connection:
            sealed = await factors.seal_all(connection, sealing)
        if sealed:
            _log.info("second_factors_sealed", entries=sealed)
        tasks.start(_keep(auth), name="keep")
        yield auth
    finally:
        await tasks.stop()
        await sessions.cache.stop()
        await known.cache.stop()
        passwords.close()


def _text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


async def _keep(auth: Auth) -> None:
    """Follow key rotation and sweep old sessions, for ever."""
    while True:
        await asyncio.sleep(auth.settings.keys_reload_s)
        try:
            await auth.keys.load()
            await touch(auth)
            async with transaction(auth.pool) as connection:
                await store.sweep_sessions(connection, _SESSIONS_KEPT_S)
                await factors.sweep_challenges(connection)
                await throttle.sweep(connection, auth.settings)
        except (*DATABASE_FAULTS, TBotError) as error:
            # The keys at hand go on serving; the next round tries again.
            _log.warning("auth_upkeep_failed", error=repr(error))


async def touch(auth: Auth) -> None:
    """Write down which sessions and keys were used since the last time, and when."""
    used, auth.used = auth.used, {}
    keys_used, auth.api_keys.used = auth.api_keys.used, {}
    if not used and not keys_used:
        return
    async with transaction(auth.pool) as connection:
        if used:
            await session_store.touch(connection, used)
        if keys_used:
            await api_keys.touch(connection, keys_used)


def _forget(auth: Auth, user_id: str | None) -> None:
    whose = () if user_id is None else (UUID(user_id),)
    auth.sessions.forget(*whose)
    auth.api_keys.forget(*whose)


def sessions_ended(auth: Auth, user_id: UUID) -> None:
    """Forget which sessions and keys of a user live.

    Here at once; the commit's own notification brings it to other processes.
    """
    auth.bus.wake([TOPIC, f"{TOPIC}:{user_id}"])
