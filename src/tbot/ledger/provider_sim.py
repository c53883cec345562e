"""A payment provider for paper money, in process: pays everything, or fails as it is told to.

Its books are a table of its own, so it survives a crash of ours as a real provider would, and can
be compared with the ledger. Its callbacks come over HTTP with a signature, after a delay; from its
seed it refuses, stays silent, fails, returns, repeats and shuffles as the settings say.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx
import msgspec
import structlog

from tbot.core import clock, money
from tbot.core.bus import wait_for_wake
from tbot.core.errors import (
    InvalidAmount,
    ProviderAmbiguous,
    ProviderError,
    ProviderNotSent,
    ProviderRefused,
)
from tbot.core.payment_settings import SimulatedProviderSettings
from tbot.db.pool import DATABASE_FAULTS
from tbot.ledger import signatures
from tbot.ledger.provider import Order, Report, Said

_log = structlog.get_logger(__name__)

NAME: Final = "simulated"
_DAY_S: Final = 86_400.0
_READ_AT_ONCE: Final = 256
_ATTEMPT_DELAY_S_MAX: Final = 60.0

_TAKE: Final = """INSERT INTO simulated_payments AS s
 (id, kind, asset, amount, destination, reference, requests, outcome, due_at, told, attempts)
VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $8, false, 0)
ON CONFLICT (id) DO UPDATE SET requests = s.requests + 1
RETURNING s.*"""
_DUE: Final = """SELECT * FROM simulated_payments WHERE NOT told AND due_at <= $1
ORDER BY due_at LIMIT $2"""
_NEXT: Final = "SELECT min(due_at) FROM simulated_payments WHERE NOT told"


class _Message(msgspec.Struct, frozen=True):
    """The body of a callback."""

    payment_id: str
    status: str
    asset: str
    amount: str
    reference: str
    reason: str | None = None


@dataclass(slots=True)
class SimulatedProvider:
    """See the module's text.

    Args:
        pool: For its books.
        secret: Signs its callbacks; shared by all processes.
        callback_url: Base URL of a T-Bot server.
    """

    pool: asyncpg.Pool[asyncpg.Record]
    settings: SimulatedProviderSettings
    secret: bytes
    callback_url: str
    tolerance_s: float = 300.0
    name: str = NAME
    repeatable_s: float = 30 * _DAY_S
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _luck: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._luck = random.Random(self.settings.seed)

    async def submit(self, order: Order) -> Report:
        """Take a payout; the same id again is the same payout."""
        return _report(await self._take("withdrawal", order))

    async def announce(self, order: Order) -> str:
        """Expect a deposit, which comes by itself after the delay."""
        row = await self._take("deposit", order)
        return f"Nothing to do: the simulated provider pays {row['reference']} by itself."

    async def look_up(self, payment_id: UUID) -> Report | None:
        """What became of a payment."""
        if self._luck.random() < self.settings.timeout_share:
            raise ProviderNotSent("the simulated provider cannot be reached")
        row = await self._books("SELECT * FROM simulated_payments WHERE id = $1", payment_id)
        return None if row is None else _report(row)

    def verify(self, message_id: str, timestamp: str, signatures_: str, body: bytes) -> None:
        """See `Provider.verify`."""
        signatures.verify(
            self.secret,
            message_id,
            timestamp,
            signatures_,
            body,
            now_s=time.time(),
            tolerance_s=self.tolerance_s,
        )

    def read(self, body: bytes) -> Report:
        """See `Provider.read`."""
        try:
            message = msgspec.json.decode(body, type=_Message)
            return Report(
                UUID(message.payment_id),
                Said(message.status),
                message.asset,
                money.parse(message.amount),
                message.reference,
                message.reason,
            )
        except (msgspec.MsgspecError, InvalidAmount, ValueError) as error:
            raise ProviderError(f"the callback is not understood: {error}") from error

    async def run(self) -> None:
        """Settle payments and call back, until cancelled; one process at a time."""
        limits = httpx.Limits(max_connections=self.settings.callbacks_at_once)
        async with httpx.AsyncClient(
            base_url=self.callback_url, timeout=10.0, limits=limits, trust_env=False
        ) as client:
            while True:
                self._woken.clear()
                try:
                    wait_s = await self._settle(client)
                except DATABASE_FAULTS as error:
                    _log.warning("simulated_provider_without_books", error=repr(error))
                    wait_s = 1.0
                if wait_s > 0:
                    await wait_for_wake(self._woken, wait_s)

    async def _settle(self, client: httpx.AsyncClient) -> float:
        """Call back about what is due; how long nothing will be."""
        now = clock.utc_now()
        rows = await self.pool.fetch(_DUE, now, _READ_AT_ONCE)
        if not rows:
            following = await self.pool.fetchval(_NEXT)
            if following is None:
                return 1.0
            until_s: float = (following - now).total_seconds()
            return min(1.0, max(0.001, until_s))
        gate = asyncio.Semaphore(self.settings.callbacks_at_once)
        told = await asyncio.gather(*(self._tell(client, gate, row) for row in rows))
        heard = [row["id"] for row, ok in zip(rows, told, strict=True) if ok]
        unheard = [row for row, ok in zip(rows, told, strict=True) if not ok]
        if heard:
            await self.pool.execute(
                "UPDATE simulated_payments SET told = true WHERE id = ANY($1::uuid[])", heard
            )
        for row in unheard:
            delay_s = min(_ATTEMPT_DELAY_S_MAX, 0.1 * 2 ** min(row["attempts"], 16))
            await self.pool.execute(
                "UPDATE simulated_payments SET attempts = attempts + 1, due_at = $2 WHERE id = $1",
                row["id"],
                clock.utc_now() + timedelta(seconds=delay_s),
            )
        return 0.0

    async def _tell(
        self, client: httpx.AsyncClient, gate: asyncio.Semaphore, row: asyncpg.Record
    ) -> bool:
        """Send a payment's callbacks; whether all of them were taken."""
        async with gate:
            taken = [await self._post(client, *one) for one in self.callbacks(row)]
        return all(taken)

    def callbacks(self, row: Any) -> Sequence[tuple[str, bytes]]:
        """A payment's callbacks with their ids, in the order in which they are sent."""
        said = ["succeeded", "returned"] if row["outcome"] == "returned" else [row["outcome"]]
        chance = self._chance("callbacks", row["id"], row["attempts"])
        shuffle = chance.random() < self.settings.shuffle_share
        if shuffle:
            said = ["processing", *said]
        sent = []
        for status in said:
            message = _Message(
                payment_id=str(row["id"]),
                status=status,
                asset=row["asset"],
                amount=money.text(row["amount"]),
                reference=row["reference"],
                reason=None if status != "failed" else "the simulated bank says no",
            )
            sent.append((f"{row['reference']}.{status}", msgspec.json.encode(message)))
            if chance.random() < self.settings.duplicate_share:
                sent.append(sent[-1])
        if shuffle:
            chance.shuffle(sent)
        return sent

    async def _post(self, client: httpx.AsyncClient, message_id: str, body: bytes) -> bool:
        headers = signatures.headers((self.secret,), message_id, int(time.time()), body)
        try:
            answer = await client.post(f"/v1/callbacks/{NAME}", content=body, headers=headers)
        except httpx.HTTPError as error:
            _log.info("simulated_callback_not_taken", error=repr(error))
            return False
        if not answer.is_success:
            _log.info("simulated_callback_not_taken", status=answer.status_code)
        return answer.is_success

    async def _take(self, kind: str, order: Order) -> asyncpg.Record:
        """Write a payment into the books, unless it is there."""
        settings = self.settings
        # Every attempt has its own luck; the payment's fate is settled once.
        luck = self._luck
        if luck.random() < settings.refusal_share:
            raise ProviderRefused("the simulated provider does not take it")
        unanswered = luck.random() < settings.timeout_share
        if unanswered and luck.random() < 0.5:
            raise ProviderAmbiguous("the simulated provider did not answer")
        chance = self._chance("fate", order.payment_id)
        outcome = "succeeded"
        if chance.random() < settings.failure_share:
            outcome = "failed"
        elif kind == "withdrawal" and chance.random() < settings.return_share:
            outcome = "returned"
        delay_s = settings.delay_s * chance.uniform(0.5, 1.5)
        row = await self._books(
            _TAKE,
            order.payment_id,
            kind,
            order.asset,
            order.amount,
            order.destination,
            f"sim_{chance.getrandbits(96):024x}",
            outcome,
            clock.utc_now() + timedelta(seconds=delay_s),
        )
        assert row is not None
        if (row["asset"], row["amount"]) != (order.asset, order.amount):
            raise ProviderRefused("this id has been used for another payment")
        self._woken.set()
        if unanswered:
            raise ProviderAmbiguous("the simulated provider did not answer")
        return row

    async def _books(self, sql: str, *args: Any) -> asyncpg.Record | None:
        try:
            return await self.pool.fetchrow(sql, *args)
        except DATABASE_FAULTS as error:
            raise ProviderAmbiguous(f"the simulated provider has trouble: {error!r}") from error

    def _chance(self, *what: object) -> random.Random:
        return random.Random(f"{self.settings.seed}:{':'.join(map(str, what))}")


def _report(row: Any) -> Report:
    """A payment as the books have it; before its time it is still being processed."""
    due = row["due_at"] <= clock.utc_now() or row["told"] or row["attempts"] > 0
    amount: Decimal = row["amount"]
    said = Said(row["outcome"]) if due else Said.PROCESSING
    return Report(row["id"], said, row["asset"], amount, row["reference"])
