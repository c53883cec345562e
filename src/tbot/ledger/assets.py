"""Assets and their scales, from memory: how many decimals an amount may have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

import asyncpg

from tbot.core import money
from tbot.core.refusals import Reason, Refused


class Assets:
    """The scales of all assets.

    An asset never goes, and its scale never shrinks: what is in memory may only be too strict, and
    is read again before anything is refused for it.
    """

    __slots__ = ("_pool", "_scales")

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._pool = pool
        self._scales: dict[str, int] = {}

    def fits(self, asset: str, amount: Decimal) -> bool:
        """Whether the asset is known and has room for the amount's decimals; False is no verdict.

        What is not known to fit goes through `check`, which reads again.
        """
        scale = self._scales.get(asset)
        return scale is not None and money.scale_of(amount) <= scale

    async def check(self, amounts: Iterable[tuple[str, Decimal]]) -> Refused | None:
        """The first reason to refuse one of these amounts, or None.

        Raises:
            asyncpg.PostgresError, OSError: The table cannot be read.
        """
        doubtful = [one for one in amounts if not self.fits(*one)]
        if not doubtful:
            return None
        rows = await self._pool.fetch("SELECT code, scale FROM assets")
        self._scales = {row["code"]: row["scale"] for row in rows}
        for asset, amount in doubtful:
            scale = self._scales.get(asset)
            if scale is None:
                return Refused(Reason.ASSET_UNKNOWN, f"no asset is called {asset}")
            if money.scale_of(amount) > scale:
                return Refused(
                    Reason.AMOUNT_TOO_PRECISE,
                    f"{asset} has {scale} decimals",
                    {"asset": asset, "scale": scale},
                )
        return None


async def save_assets(pool: asyncpg.Pool[asyncpg.Record], scales: Mapping[str, int]) -> None:
    """Make assets known; one that is known keeps the larger scale."""
    await pool.executemany(
        "INSERT INTO assets (code, scale) VALUES ($1, $2)"
        " ON CONFLICT (code) DO UPDATE SET scale = greatest(assets.scale, excluded.scale)",
        sorted(scales.items()),
    )
