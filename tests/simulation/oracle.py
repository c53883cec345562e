"""What must hold after a seed, judged by a model of its own.

It believes the journal's bytes, hashes them itself, and replays them on plain dictionaries. What
callers were told, what listeners heard, what tables and caches hold must all agree with that.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import msgspec

from tbot.core.errors import NotFound, OutcomeUnknown, Unavailable
from tbot.core.refusals import Reason, Refused
from tbot.journal.commands import Accepted, Priority
from tbot.journal.once import Kept

from .toy import ASSET, Toy

if TYPE_CHECKING:
    from .clients import Attempt, Process
    from .world import World


@dataclass(slots=True)
class Model:
    """What the journal says.

    Attributes:
        stands: Per account, `(hash, balance)` after each entry; index 0 is before the first.
        places: Per command id, `{account: [seq]}`.
        keys: Per account and toy key, the commands that carried it out.
        once: Per idempotency key and content, likewise.
    """

    stands: dict[UUID, list[tuple[bytes, Decimal]]] = field(default_factory=dict)
    places: dict[str, dict[UUID, list[int]]] = field(default_factory=dict)
    keys: dict[tuple[UUID, str], list[tuple[str, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    once: dict[tuple[UUID, bytes], list[str]] = field(default_factory=lambda: defaultdict(list))
    moved: set[UUID] = field(default_factory=set)
    outside: Decimal = Decimal(0)


def check(world: World) -> None:
    """Everything, once the world is at rest."""
    model = _replay(world)
    _check_tables(world, model)
    for attempt in world.attempts:
        if attempt.once is not None and str(attempt.move.id) in model.places:
            model.once[attempt.once.key, attempt.once.content].append(str(attempt.move.id))
    for attempt in world.attempts:
        _check_attempt(world, model, attempt)
    _check_keys(world, model)
    _check_halts(world)
    _check_server(world)


def _check_halts(world: World) -> None:
    """What heeds the switch took effect while it was not thrown, in the order of commits."""
    (turns,) = world.server.tables["switches"].rows.values()
    halted = world.server.tables["switches"].columns.index("halted")
    heeding = {str(attempt.move.id) for attempt in world.attempts if attempt.move.heed}
    journal = world.server.tables["journal"]
    body = journal.columns.index("body")
    for versions in journal.rows.values():
        for commit, row in versions:
            if row is None or msgspec.json.decode(row[body])["command"] not in heeding:
                continue
            before = [turn for number, turn in turns if number < commit]
            if before and before[-1] is not None and before[-1][halted]:
                world.fault(f"commit {commit} took effect after the switch was thrown")


def _replay(world: World) -> Model:
    model = Model()
    rows = world.server.tables["journal"].latest_dicts()
    streams = {row["account_id"]: row for row in world.server.tables["streams"].latest_dicts()}
    by_account: dict[UUID, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_account[row["account_id"]].append(row)
    for account in by_account:
        if account not in streams:
            world.fault(f"{account} has entries but no stream")
    for account, stream in streams.items():
        head = hashlib.sha256(f"tbot:1:{account}".encode()).digest()
        stands = model.stands[account] = [(head, Decimal(0))]
        at = ""
        for expected, row in enumerate(by_account[account], 1):
            if row["seq"] != expected:
                world.fault(f"{account}: entry {expected} is missing")
                break
            head = hashlib.sha256(head + row["body"]).digest()
            body = json.loads(row["body"])
            if head != row["hash"] or body["seq"] != expected or body["account"] != str(account):
                world.fault(f"{account}: the chain breaks at {expected}")
                break
            if body["at"] < at:
                world.fault(f"{account}: time goes back at {expected}")
            at = body["at"]
            stands.append((head, stands[-1][1] + _book(model, account, body)))
            if stands[-1][1] < 0:
                world.fault(f"{account}: below zero at {expected}")
        if (stream["seq"], stream["hash"]) != (len(stands) - 1, stands[-1][0]):
            world.fault(f"{account}: the stream's head is not its last entry")
    return model


def _book(model: Model, account: UUID, body: dict[str, Any]) -> Decimal:
    change = Decimal(0)
    for holder, asset, amount in body["postings"]:
        assert asset == ASSET
        if holder == "available":
            change += Decimal(amount)
            model.moved.add(account)
        else:
            model.outside += Decimal(amount)
    places = model.places.setdefault(body["command"], {})
    places.setdefault(account, []).append(body["seq"])
    key = body["data"].get("key")
    if key is not None:
        model.keys[account, key].append((body["command"], body["seq"]))
    return change


def _check_tables(world: World, model: Model) -> None:
    rows = world.server.tables["toy_accounts"].latest_dicts()
    found = {row["account_id"]: (row["seq"], row["amount"]) for row in rows}
    expected = {a: (len(s) - 1, s[-1][1]) for a, s in model.stands.items() if len(s) > 1}
    if found != expected:
        world.fault(f"the tables are not what the journal makes: {found} instead of {expected}")
    if world.ledger:
        rows = world.server.tables["balances"].latest_dicts()
        booked = {row["account_id"]: row["available"] for row in rows}
        if booked != {a: amount for a, (_, amount) in found.items() if a in model.moved}:
            world.fault(f"the ledger's balances are not what the journal makes: {booked}")
    outside = sum((r["amount"] for r in world.server.tables["counters"].latest_dicts()), Decimal(0))
    if outside != model.outside:
        world.fault(f"the counter-account is {outside}, its postings sum to {model.outside}")
    total = outside + sum((amount for _, amount in found.values()), Decimal(0))
    if total:
        world.fault(f"the sum over everything is {total}")
    for (account, key), commands in model.keys.items():
        if len(commands) > 1:
            world.fault(f"{account}: {key} was carried out {len(commands)} times")
    keys = {(r["account_id"], r["key"]) for r in world.server.tables["toy_keys"].latest_dicts()}
    if keys != set(model.keys):
        world.fault("the table of keys is not what the journal makes")


def _check_attempt(world: World, model: Model, attempt: Attempt) -> None:
    move, outcome = attempt.move, attempt.outcome
    where = f"a{attempt.number} ({move.kind})"
    places = model.places.get(str(move.id), {})
    if places and (set(places) != set(move.accounts) or any(len(s) > 1 for s in places.values())):
        world.fault(f"{where} was carried out in part or twice: {places}")
    if attempt.note == "open":
        world.fault(f"{where} never ended")
    _check_wait(world, attempt, where)
    if attempt.certainly_not and places:
        world.fault(f"{where} was told {outcome!r} but was carried out")
    if isinstance(outcome, Accepted):
        _check_accepted(world, model, attempt, places)
    elif isinstance(outcome, Refused):
        _check_refused(world, model, attempt)
    elif isinstance(outcome, Kept):
        if attempt.once is None:
            world.fault(f"{where} has no key but got a kept answer")
        if places:
            world.fault(f"{where} got a kept answer but was carried out itself")
    elif outcome is not None and not _promised(attempt):
        world.fault(f"{where} was answered {outcome!r}")


def _check_wait(world: World, attempt: Attempt, where: str) -> None:
    """However frozen the database is, an answer comes; only reports wait for as long as it takes."""
    if attempt.ended_s is None or attempt.move.priority is Priority.REPORT:
        return
    limits = world.settings
    connect_s = 5.0
    one_try_s = connect_s + 2 * (limits.transaction_timeout_s + 1)
    most_s = limits.queue_age_s_max + 2 * one_try_s + limits.resolve_timeout_s
    waited_s = attempt.ended_s - attempt.begun_s
    if waited_s > most_s:
        world.fault(f"{where} waited for {waited_s:.1f} s of at most {most_s:.1f} s")


def _promised(attempt: Attempt) -> bool:
    """Whether an exception is one that this command's caller has to reckon with."""
    outcome, kind = attempt.outcome, attempt.move.kind
    if isinstance(outcome, Unavailable | OutcomeUnknown):
        return True
    if isinstance(outcome, NotFound):
        return True
    if kind == "raise":
        return isinstance(outcome, ValueError)
    return kind == "poison" and isinstance(outcome, asyncpg.CheckViolationError)


def _check_accepted(
    world: World, model: Model, attempt: Attempt, places: dict[UUID, list[int]]
) -> None:
    move, outcome = attempt.move, attempt.outcome
    where = f"a{attempt.number} ({move.kind})"
    told = {entry.account_id: entry.seq for entry in outcome.entries}
    if told != {account: seqs[0] for account, seqs in places.items()}:
        world.fault(f"{where} was told {told}, the journal has {places}: lost or invented")
        return
    first, result = move.accounts[0], outcome.result
    stands = model.stands.get(first, [])
    if not 0 < result.seq < len(stands) or Decimal(result.balance) != stands[result.seq][1]:
        world.fault(f"{where} was told {result}, which the journal does not show")
    for account, seq in told.items():
        if seq <= attempt.seen[account]:
            world.fault(f"{where} came to stand before what was known when it was asked")
    if not told and move.key is None and move.kind != "look":
        world.fault(f"{where} was accepted without any effect")
    done_by = model.keys.get((first, move.key or ""), [])
    if move.key is not None and move.kind != "look" and done_by != [(result.command, result.seq)]:
        world.fault(f"{where} was given another command's result: {result}")
    if move.kind == "look" and result.seq < attempt.seen[first]:
        world.fault(f"{where} was shown the past")


def _check_refused(world: World, model: Model, attempt: Attempt) -> None:
    move, refused = attempt.move, attempt.outcome
    where = f"a{attempt.number} ({move.kind})"
    if refused.reason is Reason.IDEMPOTENCY_KEY_REUSED:
        if attempt.once is None:
            world.fault(f"{where} has no key but is told that it was used")
        return
    facts = refused.facts
    first = move.accounts[0]
    stands = model.stands.get(first, [])
    seq, balance = facts["seq"], Decimal(facts["balance"])
    if seq >= len(stands) or stands[seq] != (bytes.fromhex(facts["hash"]), balance):
        world.fault(f"{where} was refused for a state that never was: {facts}")
    if seq < attempt.seen[first]:
        world.fault(f"{where} was refused for a past state: {seq} < {attempt.seen[first]}")
    for done in _done_before(model, attempt):
        if done <= seq:
            world.fault(f"{where} was refused although it had been carried out at {done}")
    needed = move.amount * max(1, len(move.accounts) - 1)
    if refused.reason is Reason.INSUFFICIENT_FUNDS and balance >= needed:
        world.fault(f"{where} was refused although there was enough")
    if refused.reason is Reason.ACCOUNT_EXISTS and not seq:
        world.fault(f"{where} was refused although there was no account")


def _done_before(model: Model, attempt: Attempt) -> list[int]:
    """Where its first account's stream has what was done under a key of this attempt."""
    move, first = attempt.move, attempt.move.accounts[0]
    found = [seq for _, seq in model.keys.get((first, move.key or ""), [])]
    if attempt.once is not None:
        twins = model.once.get((attempt.once.key, attempt.once.content), [])
        found += [model.places[twin][first][0] for twin in twins if first in model.places[twin]]
    return found


def _check_keys(world: World, model: Model) -> None:
    """Per idempotency key: at most one execution, and one answer for ever."""
    kept = {row["key"]: row for row in world.server.tables["idempotency_keys"].latest_dicts()}
    by_key: dict[UUID, list[Attempt]] = defaultdict(list)
    for attempt in world.attempts:
        if attempt.once is not None:
            by_key[attempt.once.key].append(attempt)
    if set(kept) - set(by_key):
        world.fault("an answer is kept under a key that nobody used")
    for key, attempts in by_key.items():
        name = f"key of a{attempts[0].number}"
        done = [a for a in attempts if str(a.move.id) in model.places]
        if len(done) > 1:
            world.fault(f"{name}: carried out {len(done)} times")
        row = kept.get(key)
        if done and (row is None or row["status"] != 201):
            world.fault(f"{name}: carried out, but no such answer is kept")
        for attempt in attempts:
            _check_key(world, name, row, attempt)


def _check_key(world: World, name: str, row: dict[str, Any] | None, attempt: Attempt) -> None:
    once, outcome = attempt.once, attempt.outcome
    assert once is not None
    if isinstance(outcome, Refused) and outcome.reason is Reason.IDEMPOTENCY_KEY_REUSED:
        if row is None or row["content"] == once.content:
            world.fault(f"{name}: a{attempt.number} is told that the key was used otherwise")
        return
    given: Kept | None
    if isinstance(outcome, Accepted):
        given = once.render(outcome.result)
    elif isinstance(outcome, Refused):
        given = once.render(outcome)
    elif isinstance(outcome, Kept):
        given = outcome
    else:
        return
    if given is None:  # a passing refusal, decided anew each time
        return
    if row is None:
        world.fault(f"{name}: a{attempt.number} was answered, but nothing is kept")
    elif row["content"] != once.content:
        world.fault(f"{name}: a{attempt.number} of other content was answered")
    elif (row["status"], row["body"]) != (given.status, given.body):
        world.fault(f"{name}: a{attempt.number} was told {given.body!r}, kept is {row['body']!r}")


def _check_server(world: World) -> None:
    server = world.server
    if server.locks.held:
        world.fault(f"locks are left: {server.locks.held}")
    if server.backends or server.advisory:
        world.fault(f"sessions are left: {[backend.name for backend in server.backends]}")
    if server.locks.deadlocks:
        world.fault(f"{server.locks.deadlocks} real deadlocks: locks were not taken in order")
    counters = [w for w in server.locks.waited if w[0][0] == "counters"]
    if counters:
        world.fault(f"committers waited for each other's counters: {counters[0]}")


def check_heard(world: World, process: Process) -> None:
    """A listener hears of what is durable, each entry once and in order."""
    journal = world.server.tables["journal"]
    last: dict[UUID, int] = {}
    for entry in process.heard:
        versions = journal.rows.get((entry.account_id, entry.seq))
        row = None if versions is None else versions[-1][1]
        if row is None or row[journal.columns.index("hash")] != entry.hash:
            world.fault(f"{process.name} announced an entry that is not in the journal")
        if entry.seq <= last.get(entry.account_id, 0):
            world.fault(f"{process.name} announced {entry.seq} after {last[entry.account_id]}")
        last[entry.account_id] = entry.seq
    mine = [a for a in world.attempts if a.process == process.name]
    for attempt in mine:
        if isinstance(attempt.outcome, Accepted):
            for told in attempt.outcome.entries:
                if last.get(told.account_id, 0) < told.seq:
                    world.fault(f"a{attempt.number} was answered but never announced")


def check_cache(world: World, process: Process) -> None:
    """A state in memory that claims to be at the head is what the tables say."""
    streams = {row["account_id"]: row for row in world.server.tables["streams"].latest_dicts()}
    rows = world.server.tables["toy_accounts"].latest_dicts()
    amounts = {row["account_id"]: (row["amount"], row["seq"]) for row in rows}
    keys: dict[UUID, set[str]] = defaultdict(set)
    for row in world.server.tables["toy_keys"].latest_dicts():
        keys[row["account_id"]].add(row["key"])
    for account, state in process.committer._cache._states.items():
        stream = streams.get(account)
        if stream is None or (stream["seq"], stream["hash"]) != (state.seq, state.hash):
            continue
        part = state.part(Toy)
        if state.seq and amounts.get(account) != (part.balance, part.seq):
            world.fault(f"{process.name} has {part.balance} in memory, {amounts.get(account)}")
        if not set(part.keys) <= keys[account] or part.new_keys or part.changed:
            world.fault(f"{process.name} has other keys in memory than the tables")
