"""The one place that talks to Valkey: short timeouts, a bounded number of questions, a breaker.

Valkey is for speed and for what processes count together; the truth is in Postgres. So every
question here ends within about `timeout_s`, and while Valkey is lost a question is refused at once.
There is one exception for all of that, `ValkeyUnavailable`, and its catcher goes on without.

    limiter = valkey.script(SOURCE)
    try:
        allowed = await valkey.call(lambda client: limiter([valkey.key("limit", name)], [now_ms]))
    except ValkeyUnavailable:
        ...  # the documented mode without it
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from tbot.core.breaker import Breaker, BreakerState
from tbot.core.errors import CircuitOpen, ConfigurationError, ValkeyUnavailable
from tbot.core.valkey_settings import ValkeySettings

_FAULTS: Final = (RedisError, OSError, TimeoutError)
_CLOSE_TIMEOUT_S: Final = 2.0

_log = structlog.get_logger(__name__)


class Valkey:
    """A process's connections to Valkey; belongs to one event loop. Connects at the first question.

    Args:
        settings: With a URL.

    Raises:
        ConfigurationError: The URL is none, or no valid one.
    """

    def __init__(self, settings: ValkeySettings) -> None:
        if settings.url is None:
            raise ConfigurationError("TBOT_VALKEY__URL is not set")
        self._settings = settings
        self._breaker = Breaker("valkey", settings.failures_max, settings.open_s)
        self._places = asyncio.Semaphore(settings.connections_max)
        self._waiting = 0
        try:
            pool = ConnectionPool.from_url(
                settings.url.get_secret_value(),
                max_connections=settings.connections_max,
                socket_timeout=settings.timeout_s,
                socket_connect_timeout=settings.timeout_s,
                # The breaker decides what is tried again, and when.
                retry=Retry(NoBackoff(), 0),
                client_name="tbot",
                maint_notifications_config=MaintNotificationsConfig(enabled=False),
            )
        except ValueError:
            # Without the cause: its message may have the URL, and so a password, in it.
            raise ConfigurationError("TBOT_VALKEY__URL is not a URL of a Valkey") from None
        self._client: Redis = Redis(connection_pool=pool)

    @property
    def trusted(self) -> bool:
        """Whether a question would be tried now."""
        return self._breaker.state is not BreakerState.OPEN

    @property
    def bound_s(self) -> float:
        """The longest that a `call` takes."""
        return 1.5 * self._settings.timeout_s

    def key(self, *parts: str) -> str:
        """The name of a key of this installation."""
        return self._settings.prefix + ":".join(parts)

    def script(self, source: str) -> AsyncScript:
        """A Lua script, to be called within `call`; it is loaded again after a restart."""
        return self._client.register_script(source)

    async def call[T](self, operation: Callable[[Redis], Awaitable[T]]) -> T:
        """Ask something; bounded by `bound_s`.

        Args:
            operation: Is given the client, and asks one question (a pipeline is one).

        Raises:
            ValkeyUnavailable: No answer; the question may have been carried out all the same.
        """
        if not self.trusted:
            raise ValkeyUnavailable("it is left alone after failures", self._breaker.rest_s)
        if self._waiting >= self._settings.waiting_max:
            raise ValkeyUnavailable("too many questions wait for it")
        try:
            # Too few connections for the moment's questions are no failure of Valkey's, so the
            # time in the queue counts for this caller only, and not for the breaker.
            async with asyncio.timeout(self._settings.timeout_s) as bound:
                self._waiting += 1
                try:
                    await self._places.acquire()
                finally:
                    self._waiting -= 1
        except TimeoutError:
            raise ValkeyUnavailable("every connection is busy") from None
        try:
            return await self._breaker.call(lambda: self._ask(operation, bound.when()), _FAULTS)
        except CircuitOpen as error:
            raise ValkeyUnavailable(str(error), error.retry_after_s) from None
        except _FAULTS as error:
            raise ValkeyUnavailable(f"no answer: {type(error).__name__}") from error
        finally:
            self._places.release()

    async def _ask[T](
        self, operation: Callable[[Redis], Awaitable[T]], deadline_s: float | None
    ) -> T:
        # At least half the time is for the question itself, or a long queue would look like a
        # Valkey that is down.
        least = asyncio.get_running_loop().time() + self._settings.timeout_s / 2
        async with asyncio.timeout_at(max(deadline_s or least, least)):
            return await operation(self._client)

    async def check(self) -> str | None:
        """Ask whether it is there: None, or a few words why not."""
        try:
            await self.call(lambda client: client.ping())
        except ValkeyUnavailable as error:
            return str(error)
        return None

    async def stop(self) -> None:
        """Close every connection; safe to call twice."""
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._client.aclose(close_connection_pool=True)
        except _FAULTS as error:
            _log.info("valkey_not_closed", error=type(error).__name__)
