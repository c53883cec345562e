"""Takes payments to their provider, and finds out what became of those it is silent about.

Everything is read from the table, so a process that is killed anywhere leaves nothing behind that
its successor does not find: an approved withdrawal is submitted, a submitted one is asked about.
`submitted` is written down *before* the request leaves. From then on only the provider ends it:

1. A refusal of the very first attempt, made by the process that wrote `submitted`, is a no.
2. Anything unclear leaves it `submitted`, its funds held, and the provider is asked.
3. A provider that has no such payment gets it again under the same id, which it carries out once.
4. Only if it refuses that too, and no attempt was under way for `absence_s`, nothing was paid.

Run one dispatcher at a time (`tbot.ledger.duty`); two at once would be slower, not wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge

from tbot.core import clock
from tbot.core.breaker import Breaker, BreakerState
from tbot.core.bus import Bus, wait_for_wake
from tbot.core.errors import (
    CircuitOpen,
    OutcomeUnknown,
    ProviderAmbiguous,
    ProviderError,
    ProviderNotSent,
    ProviderRefused,
    Unavailable,
)
from tbot.core.ids import new_id
from tbot.core.payment_settings import PaymentSettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.journal.commands import Accepted, Actor
from tbot.ledger import payments_store as store
from tbot.ledger.payments import Kind, Payment
from tbot.ledger.payments_commands import WAKE
from tbot.ledger.payments_flow import PaymentDesk, apply_report
from tbot.ledger.payments_reports import (
    ExpireDeposit,
    GiveUpWithdrawal,
    NoteInstructions,
    RepeatWithdrawal,
    SubmitWithdrawal,
)
from tbot.ledger.provider import Order, Provider, Report, Said

_log = structlog.get_logger(__name__)

DISPATCHER: Final = Actor("system", name="payments")
TRACKED_MAX: Final = 10_000
_FAILURES: Final = (ProviderNotSent, ProviderAmbiguous)
_LATER: Final = (*DATABASE_FAULTS, ProviderError, Unavailable, OutcomeUnknown)
"""What may keep one payment waiting without being a fault of the program."""

_BUSY = Gauge("tbot_payments_in_flight", "Payments being taken to the provider or asked about.")
_CALLS = Counter("tbot_payment_calls", "Calls to the provider.", ["call", "outcome"])


@dataclass(slots=True)
class _Track:
    """What this process knows of a payment that did not come off at once.

    Attributes:
        next_s: Not to be touched before (boot clock).
        delay_s: The delay that led there.
        unclear_s: When an attempt to submit it was last unclear.
    """

    next_s: float
    delay_s: float
    unclear_s: float


@dataclass(slots=True)
class Dispatcher:
    """Submits, asks and expires; `run` it under a duty.

    Args:
        bus: Tells of new payments.
        breaker: Around every call to the provider.
    """

    desk: PaymentDesk
    provider: Provider
    bus: Bus
    settings: PaymentSettings
    breaker: Breaker = field(init=False)
    _tracks: dict[UUID, _Track] = field(default_factory=dict)
    _busy: set[UUID] = field(default_factory=set)
    _since_s: float = 0.0

    def __post_init__(self) -> None:
        self.breaker = Breaker(
            f"provider_{self.provider.name}",
            self.settings.breaker_failures,
            self.settings.breaker_open_s,
        )

    async def run(self) -> None:
        """Work until cancelled."""
        self._since_s = clock.boot_s()
        self._tracks.clear()
        self._busy.clear()
        tasks = Tasks("payments")
        try:
            with self.bus.listening(WAKE) as woken:
                while True:
                    woken.clear()
                    full = await self._round(tasks, woken)
                    if not full:
                        await wait_for_wake(woken, self.settings.scan_interval_s)
        finally:
            await tasks.stop()

    async def _round(self, tasks: Tasks, woken: asyncio.Event) -> bool:
        """Start what is due and fits in; whether there may be more of it."""
        if self.breaker.state is BreakerState.OPEN:
            await asyncio.sleep(min(self.breaker.rest_s, self.settings.scan_interval_s))
        room = self.settings.in_flight_max - len(self._busy)
        if room <= 0:
            await wait_for_wake(woken, self.settings.scan_interval_s)
            return True
        now = clock.utc_now()
        silent_since = now - timedelta(seconds=self.settings.ask_after_s)
        try:
            async with self.desk.pool.acquire() as connection:
                without = self._waiting()
                due = await store.list_due(connection, without, room)
                silent = await store.list_silent(connection, silent_since, without, room)
                expired = await store.list_expired(connection, now, room)
        except DATABASE_FAULTS as error:
            _log.warning("payments_not_read", error=repr(error))
            return False
        work = [(self._submit, p) for p in due if p.kind is Kind.WITHDRAWAL]
        work += [(self._announce, p) for p in due if p.kind is Kind.DEPOSIT]
        work += [(self._ask, p) for p in silent]
        work += [(self._expire, p) for p in expired]
        for step, payment in work[:room]:
            if payment.id not in self._busy:
                self._busy.add(payment.id)
                tasks.start(self._one(step, payment, woken), str(payment.id))
        _BUSY.set(len(self._busy))
        return len(work) >= room

    def _waiting(self) -> Sequence[UUID]:
        """Payments that are under way, or not to be touched yet."""
        now_s = clock.boot_s()
        if len(self._tracks) > TRACKED_MAX:  # the oldest are asked about again the sooner
            for payment_id in list(self._tracks)[: TRACKED_MAX // 10]:
                del self._tracks[payment_id]
        later = [payment_id for payment_id, track in self._tracks.items() if track.next_s > now_s]
        return [*self._busy, *later]

    async def _one(
        self, step: Callable[[Payment], Awaitable[bool]], payment: Payment, woken: asyncio.Event
    ) -> None:
        """Do one payment's step; one that did not come off is left alone for a while."""
        done = False
        try:
            done = await step(payment)
        except _LATER as error:
            _log.warning("payment_waits", payment=str(payment.id), error=repr(error))
        finally:
            full = len(self._busy) >= self.settings.in_flight_max
            self._busy.discard(payment.id)
            _BUSY.set(len(self._busy))
            if done:
                self._tracks.pop(payment.id, None)
            else:
                self._postpone(payment.id)
            if full:
                woken.set()

    def _postpone(self, payment_id: UUID) -> None:
        track = self._track(payment_id)
        track.delay_s = min(
            self.settings.ask_interval_s_max,
            track.delay_s * 2 or min(self.settings.scan_interval_s, self.settings.ask_after_s),
        )
        track.next_s = clock.boot_s() + track.delay_s

    def _track(self, payment_id: UUID) -> _Track:
        """A payment's track; of attempts before our time nothing is known but that they ended."""
        return self._tracks.setdefault(payment_id, _Track(0.0, 0.0, self._since_s))

    async def _call[T](self, name: str, operation: Callable[[], Awaitable[T]]) -> T:
        async def bounded() -> T:
            try:
                async with asyncio.timeout(self.settings.call_timeout_s):
                    return await operation()
            except TimeoutError:
                raise ProviderAmbiguous("no answer in time") from None

        try:
            result = await self.breaker.call(bounded, _FAILURES)
        except (ProviderError, CircuitOpen) as error:
            _CALLS.labels(name, type(error).__name__).inc()
            raise
        _CALLS.labels(name, "answered").inc()
        return result

    async def _submit(self, payment: Payment) -> bool:
        """An approved withdrawal: write down that it goes out, then send it."""
        if self.breaker.state is BreakerState.OPEN:
            return False  # still only approved: its owner may cancel it meanwhile
        outcome = await self.desk.committer.commit(
            SubmitWithdrawal(new_id(), DISPATCHER, payment.account_id, payment.id)
        )
        if not isinstance(outcome, Accepted):
            return False  # canceled or frozen meanwhile, or withdrawals are halted
        try:
            report = await self._send(payment)
        except ProviderRefused as error:
            await self._give_up(payment, str(error))
            return True
        await self._learn(report)
        # Were it lost by the provider, silence would bring it back.
        return True

    async def _send(self, payment: Payment) -> Report:
        """One attempt to submit; the time of an unclear one is remembered."""
        order = _order(payment)
        try:
            return await self._call("submit", lambda: self.provider.submit(order))
        except ProviderAmbiguous:
            self._track(payment.id).unclear_s = clock.boot_s()
            raise

    async def _learn(self, report: Report) -> None:
        if report.said is not Said.PROCESSING:
            await apply_report(self.desk, report, DISPATCHER)

    async def _give_up(self, payment: Payment, reason: str) -> None:
        await self.desk.committer.commit(
            GiveUpWithdrawal(new_id(), DISPATCHER, payment.account_id, payment.id, reason)
        )

    async def _announce(self, payment: Payment) -> bool:
        """A new deposit: have the provider expect it."""
        order = _order(payment)
        try:
            instructions = await self._call("announce", lambda: self.provider.announce(order))
        except ProviderRefused as error:
            failed = Report(payment.id, Said.FAILED, payment.asset, payment.amount, "", str(error))
            await apply_report(self.desk, failed, DISPATCHER)
            return True
        await self.desk.committer.commit(
            NoteInstructions(new_id(), DISPATCHER, payment.account_id, payment.id, instructions)
        )
        return True

    async def _ask(self, payment: Payment) -> bool:
        """A payment that the provider is silent about: ask, and repeat what it never got."""
        report = await self._call("look_up", lambda: self.provider.look_up(payment.id))
        if report is not None:
            await self._learn(report)
            return report.said is not Said.PROCESSING
        if payment.kind is Kind.DEPOSIT:
            await self._call("announce", lambda: self.provider.announce(_order(payment)))
            return False
        assert payment.submitted_at is not None
        age_s = (clock.utc_now() - clock.unstamp(payment.submitted_at)).total_seconds()
        if age_s > self.provider.repeatable_s:
            _log.error("payment_absent", payment=str(payment.id), age_s=round(age_s))
            return False  # to repeat it now might pay it twice: somebody has to look
        allowed = await self.desk.committer.commit(
            RepeatWithdrawal(new_id(), DISPATCHER, payment.account_id, payment.id)
        )
        if not isinstance(allowed, Accepted):
            return False  # ended or frozen meanwhile, or withdrawals are halted
        try:
            report = await self._send(payment)
        except ProviderRefused as error:
            if clock.boot_s() - self._track(payment.id).unclear_s < self.settings.absence_s:
                return False  # an attempt that was unclear may still arrive
            await self._give_up(payment, f"never_landed: {error}")
            return True
        await self._learn(report)
        return report.said is not Said.PROCESSING

    async def _expire(self, payment: Payment) -> bool:
        await self.desk.committer.commit(
            ExpireDeposit(new_id(), DISPATCHER, payment.account_id, payment.id)
        )
        return True


def _order(payment: Payment) -> Order:
    return Order(payment.id, payment.asset, payment.amount, payment.destination)
