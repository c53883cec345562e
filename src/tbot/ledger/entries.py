"""Accounts, balances and limits: pure.

Entry points: `Ledger` (an account's part), `apply`, `OpenAccount`, `ChangeLimits`.

Invariants:

1. A balance changes only by an entry's postings; `available` and `held` are two holders of the
   same account, so placing and releasing a hold are postings too.
2. Per asset, the sum over every account and counter-account is zero.
3. `held` is never negative. `available` may be: a venue's report is a fact, and is booked even
   when it overdraws the account; new orders are refused until it is settled.
4. Money that a customer has at a venue is a debt of the counter-account `venue:<name>`, whose
   balance, negated, is what that venue should show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

import msgspec

from tbot.core import money
from tbot.core.refusals import Reason, Refused
from tbot.journal.chain import Entry
from tbot.journal.commands import (
    AccountState,
    Actor,
    Context,
    Draft,
    Drafts,
    Posting,
    Priority,
    States,
)

AVAILABLE = "available"
HELD = "held"
TRADING = "trading"
"""Kind of an account that trades at a venue, where its money is."""
CASH = "cash"
"""Kind of an account for payments: without a venue."""
OPENING = "outside:opening"
"""The counter-account that stands for where a cash account's opening balance came from."""


class Balance(msgspec.Struct, frozen=True, gc=False):
    """One asset of one account."""

    available: Decimal = money.ZERO
    held: Decimal = money.ZERO

    @property
    def total(self) -> Decimal:
        """What the account owns."""
        return self.available + self.held


NOTHING = Balance()


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Risk limits of one account.

    Attributes:
        max_order_notional: Largest order, in its quote asset.
        max_open_orders: Most orders that are not final.
        price_collar: How far through the market a price may be, as a fraction (0.05 = 5 %).
        allowed_instruments: The symbols it may trade; None allows all.
        overdraft: asset → how far below zero (>= 0) transfers and withdrawals may take what is
            available. Cash accounts only.
    """

    max_order_notional: Decimal
    max_open_orders: int
    price_collar: Decimal
    allowed_instruments: tuple[str, ...] | None = None
    overdraft: dict[str, Decimal] = {}

    def to_json(self) -> dict[str, Any]:
        """In JSON types, as entries and tables keep it."""
        return {
            "max_order_notional": money.text(self.max_order_notional),
            "max_open_orders": self.max_open_orders,
            "price_collar": money.text(self.price_collar),
            "allowed_instruments": (
                None if self.allowed_instruments is None else list(self.allowed_instruments)
            ),
            "overdraft": {asset: money.text(self.overdraft[asset]) for asset in self.overdraft},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Limits:
        """What `to_json` wrote."""
        allowed = data["allowed_instruments"]
        return cls(
            max_order_notional=Decimal(data["max_order_notional"]),
            max_open_orders=data["max_open_orders"],
            price_collar=Decimal(data["price_collar"]),
            allowed_instruments=None if allowed is None else tuple(allowed),
            overdraft={asset: Decimal(text) for asset, text in data.get("overdraft", {}).items()},
        )


class LimitChanges(msgspec.Struct, frozen=True, kw_only=True):
    """Changes of an account's limits; what is UNSET stays.

    Attributes:
        overdraft: asset → the new limit, or None for no overdraft; other assets' stay.
    """

    max_order_notional: Decimal | msgspec.UnsetType = msgspec.UNSET
    max_open_orders: int | msgspec.UnsetType = msgspec.UNSET
    price_collar: Decimal | msgspec.UnsetType = msgspec.UNSET
    allowed_instruments: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    overdraft: dict[str, Decimal | None] = {}

    def of(self, limits: Limits) -> Limits:
        """The limits after the changes."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        changes = {name: value for name, value in given.items() if value is not msgspec.UNSET}
        overdraft = {**limits.overdraft, **self.overdraft}
        changes["overdraft"] = {asset: most for asset, most in overdraft.items() if most}
        return msgspec.structs.replace(limits, **changes)


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Who owns an account, where it trades, and within which limits.

    Attributes:
        venue: Where a trading account's money is; None for a cash account.
        status: `open`, `frozen` (money may come in, nothing else) or `closed`.
    """

    id: UUID
    owner_id: UUID
    name: str
    venue: str | None
    status: str
    limits: Limits
    opened_at: str
    updated_at: str

    @property
    def kind(self) -> str:
        """`trading` or `cash`."""
        return kind_of(self.venue)


def kind_of(venue: str | None) -> str:
    """The kind of an account with or without a venue."""
    return CASH if venue is None else TRADING


@runtime_checkable
class Unfinished(Protocol):
    """A part of an account's state that can keep the account from being closed."""

    def unfinished(self) -> str | None:
        """What still has to end, such as `2 open orders`; None when nothing has."""


class Ledger:
    """An account's description and balances, as part of its state."""

    __slots__ = ("account", "account_changed", "assets_changed", "balances")

    def __init__(self) -> None:
        self.account: Account | None = None
        self.balances: dict[str, Balance] = {}
        self.account_changed = False
        self.assets_changed: set[str] = set()

    def available(self, asset: str) -> Decimal:
        """What may be spent or held now."""
        return self.balances.get(asset, NOTHING).available

    def spendable(self, asset: str) -> Decimal:
        """What a transfer or a withdrawal may take: what is available and the overdraft."""
        balance = self.balances.get(asset, NOTHING).available
        if self.account is None:
            return balance
        overdraft = self.account.limits.overdraft
        return balance + overdraft.get(asset, money.ZERO) if overdraft else balance

    def overdrawn(self, moved: Mapping[str, Decimal] | None = None) -> list[str]:
        """Assets whose available balance is below zero by more than the overdraft.

        Args:
            moved: asset → what the command at hand has added so far, and has not applied yet.
        """
        found = []
        for asset, balance in self.balances.items():
            more = moved.get(asset, money.ZERO) if moved else money.ZERO
            left = balance.available + more if more else balance.available
            if left < money.ZERO and self.spendable(asset) + more < money.ZERO:
                found.append(asset)
        return sorted(found) if found else found


OPEN, FROZEN, CLOSED = "open", "frozen", "closed"
_OPENED = "account.opened"
_KINDS = frozenset({_OPENED, "account.limits_changed", "account.renamed", "account.status_changed"})
"""Entries that say something of the account itself."""


def apply(state: AccountState, entry: Entry) -> None:
    """Carry out an entry's postings and, for `account.*` entries, its effects on the account."""
    ledger = state.part(Ledger)
    balances = ledger.balances
    for holder, asset, amount in entry.postings:
        if holder == AVAILABLE:
            balance = balances.get(asset, NOTHING)
            balances[asset] = Balance(balance.available + Decimal(amount), balance.held)
        elif holder == HELD:
            balance = balances.get(asset, NOTHING)
            balances[asset] = Balance(balance.available, balance.held + Decimal(amount))
        else:
            continue
        ledger.assets_changed.add(asset)
    if entry.kind in _KINDS:
        _change(state, ledger, entry)


def _change(state: AccountState, ledger: Ledger, entry: Entry) -> None:
    if entry.kind == _OPENED:
        data = entry.data
        ledger.account = Account(
            id=state.account_id,
            owner_id=UUID(data["owner"]),
            name=data["name"],
            venue=data["venue"],
            status=OPEN,
            limits=Limits.from_json(data["limits"]),
            opened_at=entry.at,
            updated_at=entry.at,
        )
    else:
        assert ledger.account is not None
        changes: dict[str, Any] = {"updated_at": entry.at}
        if "limits" in entry.data:
            changes["limits"] = Limits.from_json(entry.data["limits"])
        for name in ("name", "status"):
            if name in entry.data:
                changes[name] = entry.data[name]
        ledger.account = msgspec.structs.replace(ledger.account, **changes)
    ledger.account_changed = True


def move(asset: str, amount: Decimal, source: str, target: str) -> tuple[Posting, ...]:
    """Postings that take an amount from one holder and give it to another; none for zero.

    Example:
        >>> [str(p.amount) for p in move("USDT", Decimal(5), AVAILABLE, HELD)]
        ['-5', '5']
    """
    if not amount:
        return ()
    return (Posting(source, asset, -amount), Posting(target, asset, amount))


def venue_holder(venue: str) -> str:
    """The counter-account that stands for what a venue holds for us."""
    return f"venue:{venue}"


@dataclass(frozen=True, slots=True)
class OpenAccount:
    """Open an account, with what it starts with already delivered to its venue.

    Attributes:
        account_id: Chosen by the caller, who may repeat the command under it: the second time it
            is refused with `account_exists`.
        venue: None opens a cash account.
        deposits: asset → amount (> 0). What a cash account starts with comes from outside.
    """

    id: UUID
    actor: Actor
    account_id: UUID
    owner_id: UUID
    name: str
    venue: str | None
    limits: Limits
    deposits: Mapping[str, Decimal] = field(default_factory=dict)

    priority = Priority.NEW
    opens = True

    @property
    def accounts(self) -> tuple[UUID, ...]:
        """The new account."""
        return (self.account_id,)

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """Open it, unless its stream has begun already."""
        if states[self.account_id].seq:
            name = str(self.account_id)
            return Refused(Reason.ACCOUNT_EXISTS, f"account {name} exists", {"account_id": name})
        if self.limits.overdraft and self.venue is not None:
            return _no_overdraft()
        opened = {
            "owner": str(self.owner_id),
            "name": self.name,
            "kind": kind_of(self.venue),
            "venue": self.venue,
            "limits": self.limits.to_json(),
        }
        source = OPENING if self.venue is None else venue_holder(self.venue)
        drafts = [Draft(self.account_id, "account.opened", opened)]
        for asset, amount in sorted(self.deposits.items()):
            drafts.append(
                Draft(
                    self.account_id,
                    "account.deposited",
                    {"asset": asset, "amount": money.text(amount)},
                    move(asset, amount, source, AVAILABLE),
                )
            )
        return Drafts(tuple(drafts))

    def result(self, states: States) -> Account:
        """The account as it is now."""
        return _account(states, self.account_id)


class AccountAt(msgspec.Struct, frozen=True):
    """An account, and the sequence of its newest entry."""

    account: Account
    sequence: int


@dataclass(frozen=True, slots=True)
class ChangeAccount:
    """Change an account's limits, status or name; None leaves one as it is.

    A frozen account can be opened again. A closed one stays closed, and only an empty account is:
    all balances zero, and no part of its state `unfinished`.
    """

    id: UUID
    actor: Actor
    account_id: UUID
    limits: LimitChanges | None = None
    status: str | None = None
    name: str | None = None
    versions: frozenset[str] | None = None
    """Those that the change is for, as `version_of` has them; None for any."""

    priority = Priority.NEW
    opens = False

    @property
    def accounts(self) -> tuple[UUID, ...]:
        """The account."""
        return (self.account_id,)

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """Write down what differs."""
        account = _account(states, self.account_id)
        if self.versions is not None and version_of(account) not in self.versions:
            return Refused(Reason.PRECONDITION_FAILED)
        if account.status == CLOSED:
            return Refused(Reason.ACCOUNT_CLOSED, "the account is closed")
        drafts = []
        if self.name is not None and self.name != account.name:
            drafts.append(Draft(self.account_id, "account.renamed", {"name": self.name}))
        limits = account.limits if self.limits is None else self.limits.of(account.limits)
        if limits != account.limits:
            if limits.overdraft and account.venue is not None:
                return _no_overdraft()
            drafts.append(
                Draft(self.account_id, "account.limits_changed", {"limits": limits.to_json()})
            )
        if self.status is not None and self.status != account.status:
            if self.status == CLOSED:
                obstacle = _obstacle(states[self.account_id])
                if obstacle is not None:
                    return obstacle
            drafts.append(Draft(self.account_id, "account.status_changed", {"status": self.status}))
        return Drafts(tuple(drafts))

    def result(self, states: States) -> AccountAt:
        """The account as it is now."""
        return AccountAt(_account(states, self.account_id), states[self.account_id].seq)


def version_of(account: Account) -> str:
    """A name for what can be changed of an account: equal as long as that is equal."""
    settings = json.dumps([account.name, account.status, account.limits.to_json()], sort_keys=True)
    return blake2b(settings.encode(), digest_size=8).hexdigest()


def _obstacle(state: AccountState) -> Refused | None:
    """What keeps an account from being closed."""
    left = {
        asset: money.text(balance.total)
        for asset, balance in sorted(state.part(Ledger).balances.items())
        if balance.available or balance.held
    }
    if left:
        return Refused(
            Reason.ACCOUNT_NOT_EMPTY, f"{', '.join(left)} on the account", {"balances": left}
        )
    for part in state.parts.values():
        # Whoever keeps things open on an account says so: orders, transfers, payments.
        unfinished = part.unfinished() if isinstance(part, Unfinished) else None
        if unfinished is not None:
            return Refused(Reason.ACCOUNT_NOT_EMPTY, f"{unfinished} on the account")
    return None


def _no_overdraft() -> Refused:
    return Refused(Reason.OVERDRAFT_NOT_ALLOWED, "only a cash account can have an overdraft")


def _account(states: States, account_id: UUID) -> Account:
    account = states[account_id].part(Ledger).account
    assert account is not None, "the store loads the account with its balances"
    return account
