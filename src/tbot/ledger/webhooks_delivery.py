"""Delivers the journal to webhooks: one task per subscription, in order, each entry until it ends.

An attempt that is not answered with 2xx is repeated with growing delays; after `attempts_max` the
entry is a dead letter and the next one follows. Too many dead letters in a row, or a 410, disable
the subscription. All progress is in the tables, so a killed process's successor goes on where it
was; the one entry in between may come twice, with the same id.

Run one at a time (`tbot.ledger.duty`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec
import structlog
from prometheus_client import Counter, Gauge

from tbot.core import clock
from tbot.core.bus import Bus, wait_for_wake
from tbot.core.errors import IntegrityError
from tbot.core.payment_settings import WebhookSettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.journal.cursors import Journal, Place, Recorded
from tbot.ledger import signatures
from tbot.ledger import webhooks as store
from tbot.ledger.webhooks import WAKE, Delivery, Webhook
from tbot.ledger.webhooks_target import Outcome, Sender

_log = structlog.get_logger(__name__)

_GONE: Final = 410
_PAUSE_S: Final = 1.0
_JITTER_LEAST: Final = 0.5
"""The least share of a delay: receivers that failed together are not all tried together again."""
_SUBSCRIPTIONS = Gauge("tbot_webhooks", "Subscriptions being delivered by this process.")
_ATTEMPTS = Counter("tbot_webhook_attempts", "Delivery attempts.", ["outcome"])
_DEAD = Counter("tbot_webhook_dead_letters", "Entries given up.")
_RETRYING = Gauge("tbot_webhooks_retrying", "Subscriptions that wait to repeat a failed attempt.")
_DISABLED = Counter("tbot_webhooks_disabled", "Subscriptions disabled by T-Bot.", ["reason"])


class _Head(msgspec.Struct, frozen=True):
    """What of an entry decides about its delivery."""

    kind: str
    at: str


_head = msgspec.json.Decoder(_Head).decode
_encode = msgspec.json.Encoder().encode


def message_of(account_id: UUID, entry: Recorded) -> tuple[str, bytes]:
    """An entry's message id and body: the same whenever and to whomever it is sent."""
    head = _head(entry.body)
    data: dict[str, Any] = {
        "account_id": str(account_id),
        "seq": entry.seq,
        "hash": entry.hash.hex(),
        "entry": msgspec.Raw(entry.body),
    }
    # The hash covers all that came before: it names this entry, also after a restore.
    body = _encode({"type": head.kind, "timestamp": head.at, "data": data})
    return f"msg_{entry.hash.hex()[:32]}", body


@dataclass(slots=True)
class Deliverer:
    """Delivers all enabled subscriptions; `run` it under a duty.

    Args:
        journal: For this alone, so that it may be started and stopped with it.
        bus: Tells of changed subscriptions.
    """

    pool: asyncpg.Pool[asyncpg.Record]
    journal: Journal
    bus: Bus
    settings: WebhookSettings
    sender: Sender

    async def run(self) -> None:
        """Work until cancelled."""
        tasks = Tasks("webhooks")
        running: dict[UUID, tuple[int, asyncio.Task[None]]] = {}
        gate = asyncio.Semaphore(self.settings.in_flight_max)
        try:
            with self.bus.listening(WAKE) as woken:
                while True:
                    woken.clear()
                    try:
                        async with self.pool.acquire() as connection:
                            await store.forget_old_secrets(connection)
                            wanted = await store.list_enabled(
                                connection, self.settings.subscriptions_max
                            )
                            # At once: what is disabled meanwhile would be begun once more.
                            self._adapt(tasks, running, {hook.id: hook for hook in wanted}, gate)
                    except DATABASE_FAULTS as error:
                        _log.warning("webhooks_not_read", error=repr(error))
                    await wait_for_wake(woken, self.settings.scan_interval_s)
        finally:
            await tasks.stop()
            _SUBSCRIPTIONS.set(0)

    def _adapt(
        self,
        tasks: Tasks,
        running: dict[UUID, tuple[int, asyncio.Task[None]]],
        wanted: dict[UUID, Webhook],
        gate: asyncio.Semaphore,
    ) -> None:
        """Start and stop tasks until they are what is wanted."""
        for webhook_id, (version, task) in list(running.items()):
            hook = wanted.get(webhook_id)
            if task.done() or hook is None or hook.version != version:
                task.cancel()
                del running[webhook_id]
        for hook in wanted.values():
            if hook.id not in running:
                running[hook.id] = hook.version, tasks.start(self._follow(hook, gate), str(hook.id))
        _SUBSCRIPTIONS.set(len(running))

    async def _follow(self, hook: Webhook, gate: asyncio.Semaphore) -> None:
        """Deliver one subscription until it is changed or disabled."""
        cursor = self.journal.open(hook.account_id, Place(hook.seq, hook.hash))
        try:
            while True:
                try:
                    page = await cursor.next()
                except DATABASE_FAULTS as error:
                    _log.warning("webhook_waits", webhook=str(hook.id), error=repr(error))
                    await asyncio.sleep(_PAUSE_S)
                    continue
                if not page or not await self._page(hook, page, gate):
                    return
        except IntegrityError as error:
            # The journal does not continue the stored place: a restore. Its owner decides where
            # to go on, with a replay.
            _log.error("webhook_lost_its_place", webhook=str(hook.id), error=str(error))
            await self._disable(hook, "journal_changed")
        finally:
            cursor.close()

    async def _page(self, hook: Webhook, page: Sequence[Recorded], gate: asyncio.Semaphore) -> bool:
        """Deliver what is wanted of some entries; whether to go on."""
        skipped: Recorded | None = None
        for entry in page:
            kind = _head(entry.body).kind
            if not hook.wants(kind):
                skipped = entry
                continue
            skipped = None
            if not await self._deliver(hook, entry, kind, gate):
                return False
        if skipped is None:
            return True
        last = skipped
        return await self._stored(lambda c: store.advance(c, hook, last.seq, last.hash))

    async def _stored[T](self, write: Any) -> T:
        """Do a statement, however long the database is away: what it notes has happened."""
        while True:
            try:
                async with self.pool.acquire() as connection:
                    result: T = await write(connection)
                    return result
            except DATABASE_FAULTS as error:
                _log.warning("webhook_not_noted", error=repr(error))
                await asyncio.sleep(_PAUSE_S)

    async def _deliver(
        self, hook: Webhook, entry: Recorded, kind: str, gate: asyncio.Semaphore
    ) -> bool:
        """Attempt one entry until it is delivered or dead; whether to go on with the next."""
        message_id, body = message_of(hook.account_id, entry)
        before: Delivery | None = await self._stored(
            lambda c: store.retrying(c, hook.id, entry.seq)
        )
        attempts = 0
        if before is not None and before.next_at is not None:
            attempts = before.attempts
            await _waiting((before.next_at - clock.utc_now()).total_seconds())
        while True:
            async with gate:
                now = clock.utc_now()
                now_s, secrets = int(now.timestamp()), hook.secrets(now)
                headers = signatures.headers(secrets, message_id, now_s, body)
                outcome = await self.sender.post(hook.url, headers, body)
            attempts += 1
            _ATTEMPTS.labels("taken" if outcome.error is None else "failed").inc()
            if outcome.error is None or outcome.status == _GONE:
                break
            if attempts >= self.settings.attempts_max:
                break
            delay_s = delay_most_s(self.settings, attempts) * random.uniform(_JITTER_LEAST, 1.0)
            _log.info("webhook_not_taken", webhook=str(hook.id), seq=entry.seq, error=outcome.error)
            note = _note(hook, entry, kind, "retrying", attempts, outcome, delay_s)
            await self._stored(lambda c, n=note: store.postpone(c, hook, n))
            await _waiting(delay_s)
        return await self._settle(hook, entry, kind, attempts, outcome)

    async def _settle(
        self, hook: Webhook, entry: Recorded, kind: str, attempts: int, outcome: Outcome
    ) -> bool:
        state = "delivered" if outcome.error is None else "dead"
        note = _note(hook, entry, kind, state, attempts, outcome)
        failures: int | None = await self._stored(
            lambda c: store.settle(c, hook, note, entry.hash, self.settings.deliveries_kept)
        )
        if failures is None:
            return False  # changed by its owner, or somebody else's by now
        if state == "dead":
            _DEAD.inc()
            _log.warning("webhook_dead_letter", webhook=str(hook.id), seq=entry.seq)
        if outcome.status == _GONE:
            await self._disable(hook, "gone")
        elif failures >= self.settings.dead_letters_max:
            await self._disable(hook, "dead_letters")
        else:
            return True
        return False

    async def _disable(self, hook: Webhook, reason: str) -> None:
        _log.warning("webhook_disabled", webhook=str(hook.id), reason=reason)
        await self._stored(lambda c: store.disable(c, hook, reason))
        _DISABLED.labels(reason).inc()


def delay_most_s(settings: WebhookSettings, attempts: int) -> float:
    """The longest delay after so many failed attempts, in seconds; with jitter, from half of it.

    Example:
        >>> [delay_most_s(WebhookSettings(), attempts) for attempts in (1, 2, 10, 11, 99)]
        [5.0, 10.0, 2560.0, 3600.0, 3600.0]
    """
    return float(min(settings.retry_max_s, settings.retry_base_s * 2.0 ** min(attempts - 1, 32)))


def tried_for_s(settings: WebhookSettings, attempts: int) -> tuple[float, float]:
    """When the last of so many attempts comes, in seconds after the first: soonest and latest.

    Answers that are waited for come on top.

    Example:
        >>> [round(end_s / 3600) for end_s in tried_for_s(WebhookSettings(), 100)]
        [45, 90]
    """
    most_s = sum(delay_most_s(settings, failed) for failed in range(1, attempts))
    return most_s * _JITTER_LEAST, most_s


async def _waiting(delay_s: float) -> None:
    with _RETRYING.track_inprogress():
        await asyncio.sleep(max(0.0, delay_s))


def _note(
    hook: Webhook,
    entry: Recorded,
    kind: str,
    state: str,
    attempts: int,
    outcome: Outcome,
    delay_s: float | None = None,
) -> Delivery:
    now = clock.utc_now()
    return Delivery(
        webhook_id=hook.id,
        seq=entry.seq,
        kind=kind,
        state=state,
        attempts=attempts,
        status=outcome.status,
        error=outcome.error,
        at=now,
        next_at=None if delay_s is None else now + timedelta(seconds=delay_s),
    )
