"""Making and resolving transfers: what the edge calls; and the releasing of overdue ones."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg
import structlog
from prometheus_client import Counter

from tbot.core import clock
from tbot.core.errors import NotFound, OutcomeUnknown, Unavailable
from tbot.core.ids import new_id
from tbot.core.refusals import Reason, Refused
from tbot.core.settings import LedgerSettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.journal.commands import Accepted, Actor, Command, system
from tbot.journal.committer import Committer
from tbot.journal.once import Kept, Once
from tbot.ledger import transfers_store as store
from tbot.ledger.flow import AccountDesk
from tbot.ledger.transfers import (
    NewTransfer,
    Transfer,
    TransferFacts,
    TransferState,
    create_transfers,
)
from tbot.ledger.transfers_commands import (
    ExpireTransfer,
    PostTransfer,
    ReverseTransfer,
    TransferCommand,
    VoidTransfer,
)

_ACTOR: Final = system("expiry")
_STOP_TIMEOUT_S: Final = 5.0

type Made = tuple[Transfer, ...] | Refused | Kept | Exception
"""What became of one of many transfers: made, refused, made before, or a fault."""

_log = structlog.get_logger(__name__)
_EXPIRED = Counter("tbot_transfers_expired_total", "Pending transfers released by their time.")


async def facts_of(desk: AccountDesk, transfer_id: UUID) -> TransferFacts:
    """A transfer's accounts, from memory once they were read.

    Raises:
        NotFound: No such transfer.
    """
    known = desk.transfers_known.get(transfer_id)
    if known is not None:
        return known
    async with desk.pool.acquire() as connection:
        transfer = await store.get_transfer(connection, transfer_id)
    return _remember(desk, transfer)


def _remember(desk: AccountDesk, transfer: Transfer) -> TransferFacts:
    """Keep the facts of a transfer that will be asked for again."""
    if len(desk.transfers_known) >= desk.facts_kept_max:
        desk.transfers_known.clear()
    facts = TransferFacts(transfer.id, transfer.source_id, transfer.target_id, transfer.asset)
    desk.transfers_known[transfer.id] = facts
    return facts


async def create(
    desk: AccountDesk, actor: Actor, new: NewTransfer, once: Once | None = None
) -> tuple[Transfer, ...] | Refused | Kept:
    """Make one transfer; the answer has one.

    The caller has made sure that the source is the asker's.

    Raises:
        Unavailable: Certainly not made.
        OutcomeUnknown: Repeat it under the same key.
    """
    return await _create(desk, actor, (new,), None, once)


async def create_linked(
    desk: AccountDesk, actor: Actor, new: Sequence[NewTransfer], once: Once | None = None
) -> tuple[Transfer, ...] | Refused | Kept:
    """Make transfers of which all are made or none, in their order.

    Args:
        new: 2 to `LINKED_MAX`; their sources are the asker's.

    Raises:
        Unavailable, OutcomeUnknown: As for `create`.
    """
    return await _create(desk, actor, tuple(new), new_id(), once)


async def create_many(
    desk: AccountDesk, actor: Actor, asked: Sequence[tuple[NewTransfer, Once | None]]
) -> list[Made]:
    """Make transfers that stand or fall each for itself, in their order; with their keys.

    Their sources are the asker's. What `create` would have answered or raised for each.
    """
    outcomes: list[Made | None] = [None] * len(asked)
    commands: list[tuple[Command[Any], Once | None]] = []
    places = []
    pending_max = desk.settings.transfers_pending_max
    for place, (new, once) in enumerate(asked):
        if not desk.fit(new.target_id, new.asset, new.amount):
            try:
                outcomes[place] = await _unfit(desk, new)
            except Exception as error:  # noqa: BLE001 - the others go on
                outcomes[place] = error
            if outcomes[place] is not None:
                continue
        command = create_transfers(new_id(), actor, (new,), pending_max=pending_max)
        commands.append((command, once))
        places.append(place)
    for place, outcome in zip(places, await desk.committer.commit_all(commands), strict=True):
        outcomes[place] = _made(desk, outcome) if isinstance(outcome, Accepted) else outcome
    return [one for one in outcomes if one is not None]


def _made(desk: AccountDesk, accepted: Accepted[tuple[Transfer, ...]]) -> tuple[Transfer, ...]:
    for transfer in accepted.result:
        if transfer.pending:
            _remember(desk, transfer)
    return accepted.result


async def _create(
    desk: AccountDesk,
    actor: Actor,
    new: tuple[NewTransfer, ...],
    group_id: UUID | None,
    once: Once | None,
) -> tuple[Transfer, ...] | Refused | Kept:
    for number, one in enumerate(new):
        if desk.fit(one.target_id, one.asset, one.amount):  # nearly always
            continue
        refusal = await _unfit(desk, one)
        if refusal is not None:
            if group_id is None:
                return refusal
            facts = {**(refusal.facts or {}), "transfer": number}
            return Refused(refusal.reason, f"transfer {number}: {refusal.detail}", facts)
    command = create_transfers(new_id(), actor, new, group_id, desk.settings.transfers_pending_max)
    outcome = await desk.committer.commit(command, once)
    return _made(desk, outcome) if isinstance(outcome, Accepted) else outcome


async def _unfit(desk: AccountDesk, new: NewTransfer) -> Refused | None:
    """What can be refused without any lock, of one that does not fit by memory alone."""
    refusal = await desk.assets.check([(new.asset, new.amount)])
    if refusal is not None:
        return refusal
    try:
        await desk.facts(new.target_id)
    except NotFound:
        return Refused(Reason.TARGET_NOT_FOUND, "there is no account of the target's id")
    return None


async def post(
    desk: AccountDesk,
    actor: Actor,
    transfer_id: UUID,
    amount: Decimal | None = None,
    once: Once | None = None,
) -> Transfer | Refused | Kept:
    """Let a pending transfer's money reach its target, all of it or `amount`.

    Raises:
        NotFound: No such transfer.
        Unavailable, OutcomeUnknown: As for `create`.
    """
    facts = await facts_of(desk, transfer_id)
    if amount is not None:
        refusal = await desk.assets.check([(facts.asset, amount)])
        if refusal is not None:
            return refusal
    command = PostTransfer(new_id(), actor, facts.id, facts.source_id, facts.target_id, amount)
    return await _commit(desk, command, once)


async def void(
    desk: AccountDesk, actor: Actor, transfer_id: UUID, once: Once | None = None
) -> Transfer | Refused | Kept:
    """Release a pending transfer: nothing moves.

    Raises:
        NotFound, Unavailable, OutcomeUnknown: As for `post`.
    """
    facts = await facts_of(desk, transfer_id)
    command = VoidTransfer(new_id(), actor, facts.id, facts.source_id, facts.target_id)
    return await _commit(desk, command, once)


async def reverse(
    desk: AccountDesk,
    actor: Actor,
    transfer_id: UUID,
    metadata: Mapping[str, str] | None = None,
    once: Once | None = None,
) -> Transfer | Refused | Kept:
    """Take a posted transfer back; the answer is the new transfer.

    The caller has made sure that the transfer's *target* is the asker's: its money goes.

    Raises:
        NotFound, Unavailable, OutcomeUnknown: As for `post`.
    """
    facts = await facts_of(desk, transfer_id)
    command = ReverseTransfer(
        new_id(),
        actor,
        facts.id,
        facts.source_id,
        facts.target_id,
        new_id(),
        dict(metadata or {}),
    )
    return await _commit(desk, command, once)


async def _commit(
    desk: AccountDesk, command: TransferCommand, once: Once | None
) -> Transfer | Refused | Kept:
    outcome = await desk.committer.commit(command, once)
    if not isinstance(outcome, Accepted):
        return outcome
    transfer: Transfer = outcome.result
    return transfer


class Expiry:
    """Releases pending transfers whose time is over, in rounds of a bounded size.

    Every process may run one: the second to come finds nothing left to do.
    """

    def __init__(
        self,
        pool: asyncpg.Pool[asyncpg.Record],
        committer: Committer,
        settings: LedgerSettings,
    ) -> None:
        self._pool = pool
        self._committer = committer
        self._settings = settings
        self._tasks = Tasks("transfers")

    def start(self) -> None:
        """Begin; the first round comes at once."""
        self._tasks.start(self._run(), "expire")

    async def stop(self) -> None:
        """End; safe to call twice."""
        await self._tasks.stop(_STOP_TIMEOUT_S)

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except (Unavailable, OutcomeUnknown, *DATABASE_FAULTS) as error:
                # What was not released is found again by the next round.
                _log.warning("transfers_not_expired", error=repr(error))
            await asyncio.sleep(self._settings.expiry_interval_s)

    async def sweep(self) -> int:
        """Release everything that is due by now; how many transfers were.

        Raises:
            Unavailable, OutcomeUnknown, asyncpg.PostgresError, OSError: Not everything was done;
                what is left comes next time.
        """
        total = 0
        now = clock.utc_now()
        while True:
            async with self._pool.acquire() as connection:
                due = await store.list_overdue(connection, now, self._settings.expiry_batch)
            outcomes = await self._committer.commit_all(
                [
                    (ExpireTransfer(new_id(), _ACTOR, t.id, t.source_id, t.target_id), None)
                    for t in due
                ]
            )
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
            released = sum(
                1
                for outcome in outcomes
                if isinstance(outcome, Accepted)
                and outcome.entries
                and outcome.result.state is TransferState.EXPIRED
            )
            total += released
            _EXPIRED.inc(released)
            # A round that released nothing, though something was due, is tried again later.
            if len(due) < self._settings.expiry_batch or not released:
                return total
