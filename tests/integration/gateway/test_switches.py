"""Halts, and resuming: above all after a venue lost its memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from tbot.core.errors import ConfigurationError, Conflict, NotFound
from tbot.core.refusals import Reason, Refused
from tbot.core.settings import GatewaySettings
from tbot.db.pool import transaction
from tbot.gateway import resume as resuming
from tbot.gateway import switches
from tbot.journal.commands import Actor
from tbot.orders.model import State
from tbot.venues.base import StreamGap

ANN = Actor("operator", name="ann@desk")
SOON = GatewaySettings(receive_window_ms=100, absence_margin_s=1)


class FundedVenue:
    """A reset paper venue, as far as a resumption uses it."""

    name = "paper"

    def __init__(self, session: str) -> None:
        self.session = session
        self.has: dict[str, Decimal] = {}

    async def session_id(self) -> str:
        return self.session

    async def balances(self) -> dict[str, tuple[Decimal, Decimal]]:
        return {asset: (amount, Decimal(0)) for asset, amount in self.has.items()}

    async def deposit(self, deposit_id: str, asset: str, amount: Decimal) -> None:
        self.has[asset] = self.has.get(asset, Decimal(0)) + amount


async def halted(desk: Any, account: Any) -> bool:
    outcome = await desk.committer.commit(desk.order(account))
    return isinstance(outcome, Refused) and outcome.reason is Reason.VENUE_HALTED


async def test_a_switch_says_who_turned_it_when_and_why(desk: Any, pool: Any) -> None:
    account = await desk.open(USDT="1000")
    async with transaction(pool) as connection:
        await switches.halt(connection, "trading", "the market is mad", ANN)
    async with pool.acquire() as connection:
        refused = await desk.place(account)
        assert refused.reason is Reason.VENUE_HALTED
        assert refused.detail == "the market is mad"
        situation = await resuming.look(connection, "trading", SOON)
        assert situation.loss is None
        await resuming.resume(pool, desk.committer, {}, situation, ANN, "it calmed down")
        assert not isinstance(await desk.place(account), Refused)
        turns = await switches.history(connection, "trading")
        assert [(t.halted, t.reason, t.by) for t in turns] == [
            (False, "it calmed down", "operator ann@desk"),
            (True, "the market is mad", "operator ann@desk"),
        ]
        assert all(turn.actor == ANN.to_json() for turn in turns)
        assert turns[0].id > turns[1].id > 0
        assert await switches.current(connection) == [turns[0]]
        with pytest.raises(NotFound, match="trading is not halted"):
            await resuming.look(connection, "trading", SOON)
        for statement in ("UPDATE switch_changes SET reason = ''", "DELETE FROM switch_changes"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)


async def test_what_is_halted_for_the_same_reason_stays_as_it_is(desk: Any, pool: Any) -> None:
    bob = Actor("operator", name="bob@desk")
    async with transaction(pool) as connection:
        first = await switches.halt(connection, "trading", "mad", ANN)
    async with transaction(pool) as connection:
        assert await switches.halt(connection, "trading", "mad", bob) == first
    async with transaction(pool) as connection:
        assert (await switches.halt(connection, "trading", "worse", bob)).by == "operator bob@desk"
    async with transaction(pool) as connection:
        await switches.release(connection, "trading", "mad", ANN)
        with pytest.raises(Conflict, match="trading is not halted"):
            await switches.release(connection, "trading", "mad", ANN)
        turns = await switches.history(connection, "trading")
        assert [turn.reason for turn in turns] == ["mad", "worse", "mad"]
        assert await switches.history(connection, "trading", 2, turns[0].id) == turns[1:]


async def test_turns_from_before_actors_were_kept_tell_who_in_words(pool: Any) -> None:
    async with pool.acquire() as connection:
        for number, words in enumerate(("operator ann@desk", "gateway")):
            await connection.execute(
                "INSERT INTO switches (name, halted, reason, changed_by, at)"
                " VALUES ($1, true, 'old', $2, now())",
                f"venue:v{number}",
                words,
            )
        told = [(turn.by, turn.actor) for turn in await switches.current(connection)]
        assert told == [("operator ann@desk", ANN.to_json()), ("gateway", {"kind": "gateway"})]


async def test_no_order_is_accepted_after_a_halt_has_returned(desk: Any, pool: Any) -> None:
    """Also the very first halt, whose row no batch under way can have locked."""
    account = await desk.open(USDT="100000")
    begun = asyncio.Event()
    answers: list[tuple[bool, Any]] = []
    halt_returned = False

    async def place_on() -> None:
        late = 0
        while late < 5:
            after = halt_returned
            answers.append((after, await desk.place(account, "0.06", "100")))
            begun.set()
            late += after

    placing = [asyncio.create_task(place_on()) for _ in range(8)]
    await begun.wait()
    async with transaction(pool) as connection:
        await switches.halt(connection, "venue:paper", "stop", ANN)
    halt_returned = True
    await asyncio.gather(*placing)
    late = [answer for after, answer in answers if after]
    assert len(late) == 40
    assert all(isinstance(answer, Refused) for answer in late)
    assert {answer.reason for answer in late} == {Reason.VENUE_HALTED}


@pytest.mark.parametrize(
    "name",
    ["", "Trading", "venue:", "venue:a b", "instrument:paper", "trading; drop", "venue:paper\n"],
)
def test_only_names_that_something_looks_at_are_switches(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is no switch"):
        switches.check_name(name)


async def test_trading_goes_on_after_a_venue_lost_its_memory(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any, nasty_answer: Any, pool: Any,
    eventually: Any,
) -> None:  # fmt: skip
    gateway = await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    resting = await trader.place(account)
    await trader.until(resting, lambda o: o.state is State.NEW)
    scripted.on_place = nasty_answer()
    doubtful = await trader.place(account, within_s=1.0)
    await trader.until(doubtful, lambda o: o.state is State.UNKNOWN)
    scripted.books.clear()
    scripted.session = "two"
    scripted.on_place = scripted.acknowledge
    await eventually(lambda: halted(desk, account))
    await eventually(lambda: not gateway.ready.is_set())

    with pytest.raises(Conflict, match="its new session has to be accepted") as refused:
        async with transaction(pool) as connection:
            await switches.release(connection, "venue:paper", "in haste", ANN)
    assert refused.value.code == "venue_reset"

    venue = FundedVenue("two")
    right: Any = {"paper": venue}
    async with pool.acquire() as connection:
        situation = await resuming.look(connection, "venue:paper", SOON)
        loss = situation.loss
        assert loss is not None
        assert (loss.known, loss.found, loss.expected) == ("one", "two", {"USDT": Decimal(1000)})
        assert {order.id for order in loss.orders} >= {resting.id, doubtful.id}

        # The order of unknown outcome may still arrive, and is not declared lost before it cannot.
        with pytest.raises(ConfigurationError, match="may still arrive"):
            await resuming.resume(pool, desk.committer, right, situation, ANN, "reset")
        past = replace(situation, loss=replace(loss, wait_until=None))
        with pytest.raises(ConfigurationError, match="switched off"):
            await resuming.resume(pool, desk.committer, {}, past, ANN, "reset")
        with pytest.raises(ConfigurationError, match="in session three now"):
            wrong: Any = {"paper": FundedVenue("three")}
            await resuming.resume(pool, desk.committer, wrong, past, ANN, "reset")
        assert await halted(desk, account)
        assert (await trader.get(resting)).state is State.NEW

        done = await resuming.resume(
            pool, desk.committer, right, past, ANN, "the disk was replaced"
        )
    assert done.closed == len(loss.orders)
    assert venue.has == {"USDT": Decimal(1000)}
    for order in (resting, doubtful):
        closed = await trader.get(order)
        assert (closed.state, closed.reason) == (
            State.CANCELED,
            "venue_reset: the disk was replaced",
        )
        assert closed.held_amount == 0
    entry = next(
        e.entry for e in reversed(desk.entries) if e.entry.data.get("order") == str(resting.id)
    )
    assert entry.by == {"kind": "operator", "name": "ann@desk"}
    await desk.verified()

    # The gateway notices by itself, and what is accepted now is sent.
    async with asyncio.timeout(20):
        await gateway.ready.wait()
    later = await trader.place(account)
    await trader.until(later, lambda o: o.state is State.NEW)
    assert scripted.placed.count(resting.venue_client_id) == 1, "nothing was sent again"


async def test_a_venue_that_is_reset_again_is_halted_again(
    desk: Any, scripted: Any, new_gateway: Any, pool: Any, eventually: Any
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    scripted.session = "two"
    scripted.tell(StreamGap("the venue came back"))
    await eventually(lambda: halted(desk, account))
    async with pool.acquire() as connection:
        situation = await resuming.look(connection, "venue:paper", SOON)
    assert situation.loss is not None
    situation = replace(situation, loss=replace(situation.loss, wait_until=None))
    resumed = asyncio.Event()

    async def three() -> str:  # before the gateway looks again, and after we did
        await resumed.wait()
        return "three"

    scripted.session_id = three
    two = {"paper": FundedVenue("two")}
    await resuming.resume(pool, desk.committer, two, situation, ANN, "early")
    resumed.set()
    await eventually(lambda: halted(desk, account))
    async with pool.acquire() as connection:
        again = await resuming.look(connection, "venue:paper", SOON)
    assert again.loss is not None
    assert (again.loss.known, again.loss.found) == ("two", "three")
