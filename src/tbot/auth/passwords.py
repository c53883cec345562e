"""Passwords: rules, hashing and checking, in a bounded pool of threads.

argon2id with m = 19 MiB, t = 2, p = 1 (OWASP's recommendation). One hash takes some 20 ms of a
core and 19 MiB, so both the threads and the queue in front of them are bounded: a flood of logins
gets 503, and costs nobody else more than `hash_workers` threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from tbot.core.errors import Overloaded
from tbot.core.settings import AuthSettings

_ARGON2: Final = PasswordHasher(
    time_cost=2, memory_cost=19_456, parallelism=1, hash_len=32, salt_len=16, type=Type.ID
)
_SECONDS_A_HASH: Final = 0.05
_NICE: Final = 10

# The hash of a password that was thrown away: checked for users that do not exist.
_NOBODY: Final = (
    "$argon2id$v=19$m=19456,t=2,p=1$iG6LPUeBmej8owY2zwLkrg"
    "$HPkLJ69jr7WC7C2CM07yLpa8DwMOPbxz4JIJN7bFx28"
)


class Passwords:
    """Hashes and checks passwords off the event loop.

    Attributes:
        hashes: How many argon2 computations were started: the same for a known and an unknown
            user, which a test counts.
    """

    def __init__(self, settings: AuthSettings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(
            settings.hash_workers, thread_name_prefix="argon2", initializer=_step_back
        )
        self._waiting = 0
        self.hashes = 0

    def close(self) -> None:
        """Let running hashes end and take no more; safe to call twice."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def broken_rule(self, username: str, password: str) -> str | None:
        """Why a new password is not good enough, as a sentence for its owner; None if it is."""
        settings = self._settings
        if not settings.password_length_min <= len(password) <= settings.password_length_max:
            return (
                f"a password has {settings.password_length_min} to "
                f"{settings.password_length_max} characters"
            )
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in password):
            return "a password has no control characters"
        if username in password.lower():
            return "a password does not contain the user name"
        if len(set(password)) < 5:
            return "a password has at least five different characters"
        return None

    async def hash(self, password: str) -> str:
        """The argon2id hash of a password that passed `broken_rule`.

        Raises:
            Overloaded: Too many are waiting already.
        """
        return await self._run(lambda: _ARGON2.hash(_prepared(password)))

    async def matches(self, stored: str | None, password: str) -> bool:
        """Whether the password is the one behind `stored`.

        Args:
            stored: The stored hash, or None for an unknown user: then a dummy is checked, so
                that the answer takes as long and says as much.
            password: As given. One that is longer than any password may be is compared with
                nothing, but costs the same.

        Raises:
            Overloaded: Too many are waiting already.
        """
        fits = len(password) <= self._settings.password_length_max
        expected = stored if stored is not None else _NOBODY
        offered = password if fits else ""
        matched = await self._run(lambda: _matches(expected, offered))
        return matched and stored is not None and fits

    async def _run[T](self, work: Callable[[], T]) -> T:
        if self._waiting >= self._settings.hash_queue_max + self._settings.hash_workers:
            queued_s = self._waiting * _SECONDS_A_HASH / self._settings.hash_workers
            raise Overloaded("too many logins at the moment", retry_after_s=max(1.0, queued_s))
        self._waiting += 1
        self.hashes += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        # The place is free when the thread is, not when an impatient caller goes away.
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    def _done(self, future: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if not future.cancelled():
            future.exception()  # a caller that went away leaves nobody else to look at it


def generated() -> str:
    """A password for a first administrator: 144 random bits."""
    return secrets.token_urlsafe(18)


def _step_back() -> None:
    """Let the event loop go first: where logins and orders share a core, orders do not wait."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _prepared(password: str) -> str:
    # Keyboards differ in how they compose é; NFC makes the same password of both (RFC 8265).
    return unicodedata.normalize("NFC", password)


def _matches(stored: str, password: str) -> bool:
    try:
        return _ARGON2.verify(stored, _prepared(password))
    except (VerificationError, InvalidHashError, UnicodeEncodeError):
        return False
