"""A ledger small enough to be modelled in a page: accounts with one balance, and what moves it.

`Move` is every command there is; `ToyProjection` keeps two tables in step, in the statement shapes
of the real projections. A key of the ledger's own (`Move.key`) makes a command idempotent as a
`client_order_id` does, beside the journal's idempotency keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec

from tbot.core import money
from tbot.core.refusals import Reason, Refused
from tbot.journal.chain import Entry
from tbot.journal.commands import (
    SYSTEM,
    AccountState,
    Command,
    Context,
    Draft,
    Drafts,
    Posting,
    Priority,
    States,
)
from tbot.journal.once import Kept
from tbot.journal.projections import Projection, Write

from .database import Failed
from .tables import Row, Table, new_table

ASSET: Final = "TOY"
OUTSIDE: Final = "outside:toy"
HALT: Final = "trading"

_WRITE_ACCOUNTS: Final = """INSERT INTO toy_accounts (account_id, amount, seq, poison)
SELECT * FROM unnest({0}::uuid[], {1}::numeric[], {2}::bigint[], {3}::boolean[])
ON CONFLICT (account_id) DO UPDATE SET amount = excluded.amount, seq = excluded.seq"""
_KEYS: Final = "SELECT account_id, key, result FROM toy_keys WHERE account_id = ANY($1::uuid[])"
_WRITE_KEYS: Final = """INSERT INTO toy_keys (account_id, key, result)
SELECT * FROM unnest({0}::uuid[], {1}::text[], {2}::jsonb[])"""


class Result(msgspec.Struct, frozen=True):
    """What a command did: who did it, and how its first account stood right after."""

    command: str
    seq: int
    balance: str


class Toy:
    """An account's part of the state.

    Attributes:
        keys: Those in memory: of entries with an odd sequence, as of orders that are not final.
        recalled: Others that were read for this batch.
    """

    __slots__ = ("balance", "changed", "keys", "new_keys", "poisoned", "recalled", "seq")

    def __init__(self) -> None:
        self.balance = money.ZERO
        self.seq = 0
        self.keys: dict[str, Result] = {}
        self.recalled: dict[str, Result] = {}
        self.changed = False
        self.poisoned = False
        self.new_keys: list[str] = []

    def find(self, key: str | None) -> Result | None:
        """What was done under a key, as far as memory knows."""
        return None if key is None else self.keys.get(key) or self.recalled.get(key)


@dataclass(frozen=True, slots=True)
class Move:
    """One command.

    Attributes:
        kind: `open`; `put` and `take` of one account; `spread` from the first to the others; `look`
            changes nothing; `poison` breaks a constraint of a table; `raise` fails in its own code.
        amount: Of each single movement (> 0).
        key: Makes it idempotent within the toy's own tables.
        heed: Is refused while the switch is thrown.
        burn: Called with the seconds that deciding takes.
    """

    id: UUID
    kind: str
    accounts: tuple[UUID, ...]
    amount: Decimal = money.ZERO
    key: str | None = None
    priority: Priority = Priority.NEW
    heed: bool = False
    burn: Callable[[], None] | None = None

    actor = SYSTEM

    @property
    def opens(self) -> bool:
        return self.kind == "open"

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        first = states[self.accounts[0]]
        toy = first.part(Toy)
        if self.burn is not None:
            self.burn()
        if toy.find(self.key) is not None:
            return Drafts()
        if self.kind == "raise":
            raise ValueError("planned")
        facts = {"seq": first.seq, "hash": first.hash.hex(), "balance": money.text(toy.balance)}
        if self.heed and context.halt(HALT) is not None:
            return Refused(Reason.VENUE_HALTED, facts=facts)
        if self.kind == "open" and first.seq:
            return Refused(Reason.ACCOUNT_EXISTS, facts=facts)
        if self.kind == "look":
            return Drafts()
        others = self.accounts[1:]
        if self.kind in ("take", "spread") and toy.balance < self.amount * (len(others) or 1):
            return Refused(Reason.INSUFFICIENT_FUNDS, facts=facts)
        return Drafts(tuple(self._drafts(others)))

    def _drafts(self, others: Sequence[UUID]) -> list[Draft]:
        amount = -self.amount if self.kind in ("take", "spread") else self.amount
        data: dict[str, Any] = {"key": self.key, "poison": self.kind == "poison"}
        if not others:
            postings = (Posting("available", ASSET, amount), Posting(OUTSIDE, ASSET, -amount))
            return [Draft(self.accounts[0], f"toy.{self.kind}", data, postings if amount else ())]
        taken = Posting("available", ASSET, amount * len(others))
        given = Posting("available", ASSET, -amount)
        return [
            Draft(self.accounts[0], "toy.spread", data, (taken,)),
            *(Draft(other, "toy.given", {}, (given,)) for other in others),
        ]

    def result(self, states: States) -> Result:
        first = states[self.accounts[0]]
        toy = first.part(Toy)
        done = toy.find(self.key)
        if done is not None:
            return done
        return Result(str(self.id), first.seq, money.text(toy.balance))


def render(outcome: Result | Refused) -> Kept | None:
    """The answer to keep under an idempotency key."""
    from tbot.core.refusals import PASSING

    if isinstance(outcome, Refused):
        if outcome.reason in PASSING:
            return None
        return Kept(409, {"reason": str(outcome.reason)}, msgspec.json.encode(outcome.facts))
    return Kept(201, {}, msgspec.json.encode(outcome))


class ToyProjection(Projection):
    """Keeps `toy_accounts` and `toy_keys` in step with the journal."""

    entries = "toy."

    async def load(self, connection: Any, states: Sequence[AccountState]) -> None:
        by_id = {state.account_id: state.part(Toy) for state in states}
        ids = list(by_id)
        for row in await connection.fetch(
            "SELECT account_id, amount, seq FROM toy_accounts WHERE account_id = ANY($1::uuid[])",
            ids,
        ):
            toy = by_id[row["account_id"]]
            toy.balance, toy.seq = row["amount"], row["seq"]
        for row in await connection.fetch(_KEYS, ids):
            result = msgspec.json.decode(row["result"], type=Result)
            if result.seq % 2:
                by_id[row["account_id"]].keys[row["key"]] = result

    async def fetch(self, connection: Any, commands: Any, states: States) -> None:
        """The keys that these commands name and that are not in memory."""
        named: dict[UUID, set[str]] = {}
        for state in states.values():
            state.part(Toy).recalled.clear()
        for command in commands:
            first = command.accounts[0]
            if command.key is not None and first in states:
                named.setdefault(first, set()).add(command.key)
        if not named:
            return
        for row in await connection.fetch(_KEYS, sorted(named)):
            if row["key"] in named[row["account_id"]]:
                result = msgspec.json.decode(row["result"], type=Result)
                states[row["account_id"]].part(Toy).recalled[row["key"]] = result

    def recalls(self, command: Command[Any]) -> bool:
        """Whether it has a key: that may be one of those that are not in memory."""
        return getattr(command, "key", None) is not None

    def apply(self, state: AccountState, entry: Entry) -> None:
        toy = state.part(Toy)
        for holder, _, amount in entry.postings:
            if holder == "available":
                toy.balance += Decimal(amount)
        toy.seq = entry.seq
        toy.changed = True
        toy.poisoned = toy.poisoned or entry.data.get("poison", False)
        key = entry.data.get("key")
        if key is not None:
            toy.keys[key] = Result(entry.command, entry.seq, money.text(toy.balance))
            toy.new_keys.append(key)

    def writes(self, states: Sequence[AccountState]) -> list[Write]:
        accounts: list[tuple[Any, ...]] = []
        keys: list[tuple[Any, ...]] = []
        for state in states:
            toy = state.part(Toy)
            if toy.changed:
                accounts.append((state.account_id, toy.balance, toy.seq, toy.poisoned))
            for key in toy.new_keys:
                result = msgspec.json.encode(toy.keys[key]).decode()
                keys.append((state.account_id, key, result))
            for key in toy.new_keys:
                if not toy.keys[key].seq % 2:
                    del toy.keys[key]
            toy.changed = False
            toy.new_keys.clear()
            toy.recalled.clear()
        writes = []
        if accounts:
            writes.append(Write(_WRITE_ACCOUNTS, [list(c) for c in zip(*accounts, strict=True)]))
        if keys:
            writes.append(Write(_WRITE_KEYS, [list(c) for c in zip(*keys, strict=True)]))
        return writes


def tables() -> list[Table]:
    """The toy's tables."""
    accounts = new_table("toy_accounts", ("account_id", "amount", "seq", "poison"), ("account_id",))
    accounts.check = _no_poison
    return [accounts, new_table("toy_keys", ("account_id", "key", "result"), ("account_id", "key"))]


def _no_poison(row: Row) -> None:
    if row[3]:
        raise Failed("23514", "new row violates check constraint")
