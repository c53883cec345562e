"""Which login sessions live, remembered for a few seconds.

Ending a session must stop its access tokens, yet a request must not cost a query. So an answer of
the database is believed for `session_cache_s`. In the process that ends a session it is forgotten
at once; other processes hear of it over the bus and follow at the latest when the time is over.
That time is the bound on how long an ended session's token can still be used anywhere. Without the
database nothing is believed beyond it: requests fail with 503, never open.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from tbot.auth import store
from tbot.core.cache import Cache, Form, Shared

TOPIC: Final = "sessions"
"""Bus topic that says: some session ended somewhere. `sessions:<user>` says whose."""

_LIVES: Final = b"1"


def _decode(content: bytes) -> bool:
    if content != _LIVES:
        raise ValueError("not a living session")
    return True


# Only that a session lives is told to other processes: what ended needs no speed.
_FORM: Final[Form[tuple[UUID, UUID], bool]] = Form(
    key=lambda ids: f"{ids[0]}:{ids[1]}",
    encode=lambda lives: _LIVES if lives else None,
    decode=_decode,
)


class Sessions:
    """A cache in front of `store.session_lives`."""

    def __init__(
        self, pool: store.Pool, ttl_s: float, size_max: int, shared: Shared | None = None
    ) -> None:
        self._pool = pool
        self.cache: Cache[tuple[UUID, UUID], bool] = Cache(
            "sessions",
            self._ask,
            ttl_s=ttl_s,
            size_max=size_max,
            shared=shared,
            form=_FORM,
            group=lambda ids, _lives: ids[1],
        )

    async def lives(self, session_id: UUID, user_id: UUID) -> bool:
        """Whether the session of this user lives, as of at most `session_cache_s` ago."""
        return await self.cache.get((session_id, user_id))

    def known_to_live(self, session_id: UUID, user_id: UUID) -> bool:
        """Whether memory alone says so; False is no verdict."""
        return self.cache.peek((session_id, user_id)) is True

    def forget(self, *user_ids: UUID) -> None:
        """Believe nothing of these users' sessions any more, or (none given) of anybody's."""
        self.cache.forget(*user_ids)

    async def _ask(self, ids: tuple[UUID, UUID]) -> bool:
        async with self._pool.acquire() as connection:
            return await store.session_lives(connection, *ids)
