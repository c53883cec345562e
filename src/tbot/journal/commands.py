"""The vocabulary of the write path.

A *command* asks for a change. Under the lock of the accounts it names, its pure `decide` looks at
their state and answers with *drafts* of journal entries, or with a refusal. The committer numbers,
times and hashes the drafts, and every *projection* applies them: to the state in memory, and from
there to its tables, in the same transaction. Replaying a journal calls the same `apply`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from enum import IntEnum
from typing import Any, Protocol
from uuid import UUID

import msgspec

from tbot.core import clock, money
from tbot.core.refusals import Refused
from tbot.journal import chain
from tbot.journal.chain import Entry


class Priority(IntEnum):
    """Which commands go first, and which may take the queue's reserved places."""

    REPORT = 0
    """Facts from a venue: never refused, the caller waits for room."""
    CANCEL = 1
    NEW = 2


# Structs, here and in hot commands: a frozen dataclass takes ten times as long to make.


class Actor(msgspec.Struct, frozen=True):
    """Who asks for a change; written into every entry.

    Attributes:
        kind: `user`, `gateway`, `provider` (of payments), `operator` (somebody at the command
            line) or `system`.
        session: Id of the login session or API key.
        address: Peer address as the edge determined it.
        request: The HTTP request's id.
        name: Of a system task, a provider or an operator's login: whoever is no user.
    """

    kind: str
    user_id: UUID | None = None
    session: str | None = None
    address: str | None = None
    request: str | None = None
    name: str | None = None

    def to_json(self) -> dict[str, str]:
        """As an entry's `by`, without what is unknown."""
        by = {"kind": self.kind}
        if self.user_id is not None:
            by["user"] = str(self.user_id)
        if self.session is not None:
            by["session"] = self.session
        if self.address is not None:
            by["address"] = self.address
        if self.request is not None:
            by["request"] = self.request
        if self.name is not None:
            by["name"] = self.name
        return by


def system(task: str) -> Actor:
    """A task of T-Bot's own, by name: every entry tells which one caused it."""
    return Actor("system", name=task)


SYSTEM = Actor("system")
GATEWAY = Actor("gateway")


class Posting(msgspec.Struct, frozen=True):
    """An amount added to one holder's balance of one asset (negative: taken from it)."""

    holder: str
    asset: str
    amount: Decimal


class Draft(msgspec.Struct, frozen=True):
    """A journal entry before it has a number, a time and a hash.

    Attributes:
        made: What `data` was written from, so that it need not be read again at once: see
            `AccountState.made`.
    """

    account_id: UUID
    kind: str
    data: dict[str, Any]
    postings: tuple[Posting, ...] = ()
    made: Any = None


class Switch(msgspec.Struct, frozen=True):
    """A kill switch: while `halted`, what it names takes no new orders, or moves no money."""

    halted: bool
    reason: str


class Context(msgspec.Struct, frozen=True):
    """What every decision of a batch may use besides the accounts' state.

    Attributes:
        now: Wall time of the batch.
        switches: By name: `trading`, `venue:<name>`, `instrument:<venue>:<symbol>`,
            `withdrawals`, `transfers`.
    """

    now: datetime
    switches: Mapping[str, Switch]
    _stamps: dict[float, str] = msgspec.field(default_factory=dict)

    def stamp(self, after_s: float = 0.0) -> str:
        """`now`, or so many seconds later, as JSON carries it; written once for all commands."""
        found = self._stamps.get(after_s)
        if found is None:
            found = clock.stamp(self.now + timedelta(seconds=after_s))
            self._stamps[after_s] = found
        return found

    def halt(self, *names: str) -> Switch | None:
        """The first of the named switches that is halted."""
        for name in names:
            switch = self.switches.get(name)
            if switch is not None and switch.halted:
                return switch
        return None


class AccountState:
    """An account as its journal has it after `seq` entries, in memory.

    Each projection keeps its own part of it. A state is shared by all commands of a batch and, as
    long as `seq` and `hash` equal the locked row's, by later batches.

    Attributes:
        text: The account's id as entries write it.
        topic: What is woken when its stream has a new head.
        made: While an entry of this process is applied: its draft's `made`, which is what reading
            the entry's data would give. None in a replay.
    """

    __slots__ = ("account_id", "at", "hash", "made", "parts", "seq", "text", "topic")

    def __init__(self, account_id: UUID, seq: int, head: bytes, at: datetime) -> None:
        self.account_id = account_id
        self.text = str(account_id)
        self.topic = "head:" + self.text
        self.made: Any = None
        self.seq = seq
        self.hash = head
        self.at = at
        self.parts: dict[type, Any] = {}

    def part[T](self, kind: type[T]) -> T:
        """The part of this type; created empty when there is none."""
        part: T | None = self.parts.get(kind)
        if part is None:
            part = self.parts[kind] = kind()
        return part


type States = Mapping[UUID, AccountState]


class Drafts(msgspec.Struct, frozen=True):
    """A command's answer when it is accepted.

    Attributes:
        entries: What happened, in order; may be empty when there is nothing to change.
        wakes: Bus topics to wake besides the accounts' `head:` topics.
    """

    entries: tuple[Draft, ...] = ()
    wakes: tuple[str, ...] = ()


class Command[R](Protocol):
    """A change that somebody asks for.

    Implementations are immutable. The accounts follow from immutable facts, so that they can be
    locked before anything is read.
    """

    @property
    def id(self) -> UUID:
        """Unique; its entries carry it."""

    @property
    def actor(self) -> Actor:
        """Who asks."""

    @property
    def accounts(self) -> tuple[UUID, ...]:
        """The accounts that it may read and change."""

    @property
    def priority(self) -> Priority:
        """How urgent it is."""

    @property
    def opens(self) -> bool:
        """Whether it may begin the accounts' streams."""

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """What is to happen: pure, and only from the arguments."""

    def result(self, states: States) -> R:
        """The caller's answer, read after the command's entries were applied."""


class Committed(msgspec.Struct, frozen=True):
    """An entry that is durable, as callers and post-commit listeners get it."""

    account_id: UUID
    seq: int
    hash: bytes
    body: bytes
    kind: str
    command_id: UUID
    at: datetime

    @property
    def entry(self) -> Entry:
        """What it says; read from its body each time."""
        return chain.read(self.body)


class Accepted[R](msgspec.Struct, frozen=True):
    """A command that is durable.

    Attributes:
        result: What `Command.result` answered.
        entries: What it appended; empty for a command that found nothing left to change.
    """

    result: R
    entries: tuple[Committed, ...] = ()


def unbalanced(drafts: Sequence[Draft]) -> dict[str, Decimal]:
    """Per asset, by how much a command's postings miss zero; empty when they balance.

    Example:
        >>> nobody = UUID(int=0)
        >>> move = (Posting("available", "USDT", Decimal(-5)), Posting("held", "USDT", Decimal(5)))
        >>> unbalanced([Draft(nobody, "order.accepted", {}, move)])
        {}
        >>> unbalanced([Draft(nobody, "order.accepted", {}, move[:1])])
        {'USDT': Decimal('-5')}
    """
    postings = [posting for draft in drafts for posting in draft.postings]
    if len(postings) == 2:  # nearly always
        one, other = postings
        if one.asset == other.asset and not one.amount + other.amount:
            return {}
    sums: dict[str, Decimal] = {}
    for posting in postings:
        sums[posting.asset] = sums.get(posting.asset, money.ZERO) + posting.amount
    return {asset: total for asset, total in sums.items() if total}
