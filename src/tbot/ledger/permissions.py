"""What members may do with accounts, remembered for a few seconds.

Sharing is an entry of the account's journal; its commit wakes the bus topic `sharing:<account>`,
and every process forgets what it believed of that account: the one that committed it at once,
others when the notification comes, and one that missed it when `cache.permissions_s` is over.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from tbot.core.bus import Bus
from tbot.core.cache import Cache, Form, Shared
from tbot.core.cache_settings import CacheSettings
from tbot.journal.cursors import Pool
from tbot.ledger import members_store
from tbot.ledger.members import TOPIC, Access

_FORM: Final[Form[tuple[UUID, UUID], Access | None]] = Form(
    key=lambda ids: f"{ids[0]}:{ids[1]}",
    encode=lambda access: None if access is None else b"%d" % access,
    decode=lambda content: Access(int(content)),
)


class Permissions:
    """A cache in front of `members_store.member_access`.

    Args:
        shared: What processes tell each other; None keeps to this one.
    """

    def __init__(
        self, pool: Pool, bus: Bus, settings: CacheSettings, shared: Shared | None = None
    ) -> None:
        self.pool = pool
        self._cache: Cache[tuple[UUID, UUID], Access | None] = Cache(
            "permissions",
            self._ask,
            ttl_s=settings.permissions_s,
            size_max=settings.permissions_max,
            shared=shared,
            form=_FORM,
            group=lambda ids, _access: ids[0],
        )
        bus.hear(TOPIC, self._changed)

    async def member_access(self, account_id: UUID, user_id: UUID) -> Access | None:
        """What somebody who is not its owner may do, as of at most `cache.permissions_s` ago."""
        return await self._cache.get((account_id, user_id))

    async def stop(self) -> None:
        """End the questions under way; safe to call twice."""
        await self._cache.stop()

    def _changed(self, account_id: str | None) -> None:
        self._cache.forget(*(() if account_id is None else (UUID(account_id),)))

    async def _ask(self, ids: tuple[UUID, UUID]) -> Access | None:
        async with self.pool.acquire() as connection:
            return await members_store.member_access(connection, *ids)
