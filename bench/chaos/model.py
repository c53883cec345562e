"""A T-Bot of one thread and a few dictionaries: what each journal entry should have done.

It goes through the accounts' journals in order, one account after the other, and carries each
entry out by its own rules, from what the *clients* asked for as far as they say. The entries'
postings are held against that. What spans several accounts is noted, and compared at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import ROUND_UP, Decimal
from typing import Any

from .data import Row
from .story import Asked, Item, Story

ZERO = Decimal(0)
OWN = ("available", "held")
type Deltas = dict[tuple[str, str], Decimal]


@dataclass
class Findings:
    """What does not hold; all empty when everything does."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    stream: list[str] = field(default_factory=list)
    venue: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    chain: list[str] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[str]:
        """Every sentence, with its kind."""
        return [f"{kind}: {text}" for kind, texts in vars(self).items() for text in texts]

    def counts(self) -> dict[str, int | bool]:
        """How many of each kind, and the two that are yes or no."""
        counts: dict[str, int | bool] = {
            kind: len(texts) for kind, texts in vars(self).items() if kind not in ("chain", "sums")
        }
        return counts | {"chain_ok": not self.chain, "sums_zero": not self.sums}


@dataclass(slots=True)
class Made:
    """A transfer as the journals have it."""

    source: str
    target: str
    asset: str
    amount: Decimal
    state: str
    posted: Decimal
    seq: int
    item: Item | None
    reverses: str | None
    reversed_by: str | None = None
    expires_at: str | None = None
    resolved: str = ""
    resolved_seq: int = 0


@dataclass(slots=True)
class Taken:
    """An order as the journals have it."""

    account: str
    seq: int
    data: dict[str, Any]
    asked: Asked | None
    held: Decimal = ZERO


@dataclass(slots=True)
class _Account:
    """One account while its journal is gone through."""

    id: str
    overdraft: dict[str, Decimal]
    available: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    held: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))


class Model:
    """What all journals say, once `replay` has seen each of them.

    Attributes:
        balances: (account, asset) → (available, held).
        counters: (name, asset) → amount.
        transfers, orders: By id.
        fills: (order, trade id) → (quantity, quote quantity, fee, fee asset).
        shared: command → the entries that it made in more than one account.
        places: account → (sequence, request) of what requests caused, in order.
        posts, reversals: Transfers' resolutions by post, and reversals, for their requests.
    """

    def __init__(self, told: Story, scales: dict[str, int], findings: Findings) -> None:
        self._told = told
        self._scales = scales
        self._findings = findings
        self._out: dict[tuple[str, str], tuple[str, str, Decimal]] = {}
        self._in: dict[tuple[str, str], tuple[str, str, Decimal]] = {}
        self._own_ids = {asked.id: asked for asked in told.of("order") if asked.id is not None}
        self._openings = {asked.id: asked for asked in told.of("account")}
        self.balances: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
        self.counters: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self.transfers: dict[str, Made] = {}
        self.orders: dict[str, Taken] = {}
        self.fills: dict[tuple[str, str], tuple[Decimal, Decimal, Decimal, str]] = {}
        self.shared: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self.places: dict[str, list[tuple[int, Asked]]] = defaultdict(list)
        self.reversed: list[tuple[str, str]] = []
        self.entries = 0

    def replay(self, account: str, rows: Iterable[Row], head: tuple[int, bytes]) -> None:
        """Go through one account's journal."""
        asked = self._openings.get(account)
        limits = ((asked.body or {}).get("limits") or {}) if asked is not None else {}
        overdraft = {a: Decimal(x) for a, x in (limits.get("overdraft") or {}).items()}
        state = _Account(account, overdraft)
        digest = hashlib.sha256(f"tbot:1:{account}".encode()).digest()
        expected, at = 0, ""
        for row in rows:
            expected += 1
            self.entries += 1
            digest = hashlib.sha256(digest + row.body).digest()
            if row.seq != expected or row.hash != digest:
                self._findings.chain.append(f"{account} breaks at {expected}")
                return
            body = json.loads(row.body)
            columns = (account, row.seq, row.kind, row.command, row.at)
            if columns != tuple(body[n] for n in ("account", "seq", "kind", "command", "at")):
                self._findings.chain.append(f"{account}, {row.seq}: row and body differ")
            if body["at"] < at:
                self._findings.chain.append(f"{account}, {row.seq}: earlier than the one before")
            at = body["at"]
            self._entry(state, body)
        if head[0] != expected or (expected and head[1] != digest):
            self._findings.chain.append(f"{account}: head {head[0]}, journal {expected}")
        for asset in {*state.available, *state.held}:
            self.balances[account, asset] = state.available[asset], state.held[asset]

    def _entry(self, state: _Account, body: dict[str, Any]) -> None:
        deltas: Deltas = defaultdict(Decimal)
        for holder, asset, amount in body["postings"]:
            deltas[holder, asset] += Decimal(amount)
            if holder not in OWN:
                self.counters[holder, asset] += Decimal(amount)
        handler = getattr(self, "_" + body["kind"].replace(".", "_"), None)
        if handler is None:
            handler = self._order_other if body["kind"].startswith("order.") else self._other
        wanted: Deltas | None = handler(state, body)
        if wanted is None:
            wanted = dict(deltas)
        if _nonzero(deltas) != _nonzero(wanted):
            self._say(state, body, f"did {_nonzero(deltas)}, not {_nonzero(wanted)}")
        for (holder, asset), amount in deltas.items():
            if holder == "available":
                state.available[asset] += amount
            elif holder == "held":
                state.held[asset] += amount
                if state.held[asset] < 0:
                    self._say(state, body, f"holds {state.held[asset]} {asset}")
        if body["kind"] in ("order.accepted", "transfer.created"):
            for (holder, asset), amount in deltas.items():
                least = -state.overdraft.get(asset, ZERO)
                if holder == "available" and amount < 0 and state.available[asset] < least:
                    self._say(state, body, f"leaves {state.available[asset]} {asset}")
        if not body["kind"].startswith("transfer."):
            self._balanced(state, body, deltas)

    def _balanced(self, state: _Account, body: dict[str, Any], deltas: Deltas) -> None:
        totals: dict[str, Decimal] = defaultdict(Decimal)
        for (_, asset), amount in deltas.items():
            totals[asset] += amount
        if any(totals.values()):
            self._findings.sums.append(f"{state.id}, {body['seq']} sums to {dict(totals)}")

    def _say(self, state: _Account, body: dict[str, Any], what: str) -> None:
        self._findings.effects.append(f"{state.id}, {body['seq']} ({body['kind']}) {what}")

    # Accounts

    def _account_opened(self, state: _Account, body: dict[str, Any]) -> Deltas:
        if state.id in self._openings:
            self.places[state.id].append((body["seq"], self._openings[state.id]))
        return {}

    def _account_deposited(self, state: _Account, body: dict[str, Any]) -> Deltas | None:
        asked = self._openings.get(state.id)
        if asked is None:
            return None  # the first account, which nobody of ours asked for
        data = body["data"]
        wanted = Decimal(asked.body["starting_balance"][data["asset"]])  # type: ignore[index]
        return {("venue:paper", data["asset"]): -wanted, ("available", data["asset"]): wanted}

    def _other(self, state: _Account, body: dict[str, Any]) -> Deltas | None:
        if body["postings"]:
            self._findings.invented.append(f"{state.id}, {body['seq']}: {body['kind']}")
        return None

    # Orders

    def _order_accepted(self, state: _Account, body: dict[str, Any]) -> Deltas:
        data = body["data"]["accepted"]
        client_id = data["client_order_id"]
        asked = self._own_ids.get(data["id"])
        if asked is None and client_id is not None:
            asked = self._told.by_client_id.get(client_id)
        taken = Taken(state.id, body["seq"], data, asked)
        if data["id"] in self.orders:
            self._findings.duplicated.append(f"order {data['id']} was accepted twice")
        self.orders[data["id"]] = taken
        if asked is not None:
            self.places[state.id].append((body["seq"], asked))
        asset, amount = data["held_asset"], Decimal(data["held_amount"])
        wanted = _hold(data, self._scales)
        if wanted is not None and wanted != (asset, amount):
            self._say(state, body, f"holds {amount} {asset}, not {wanted}")
        taken.held = amount
        return {("available", asset): -amount, ("held", asset): amount}

    def _order_filled(self, state: _Account, body: dict[str, Any]) -> Deltas | None:
        data, fill = body["data"], body["data"].get("fill")
        if fill is None:
            return self._order_other(state, body)
        taken = self.orders.get(data["order"])
        if taken is None:
            self._findings.invented.append(f"{state.id}, {body['seq']}: a fill of no order")
            return None
        key = data["order"], fill["trade_id"]
        if key in self.fills:
            self._findings.duplicated.append(f"trade {key} is booked twice")
        quantity, quote = Decimal(fill["quantity"]), Decimal(fill["quote_quantity"])
        fee, fee_asset = Decimal(fill["fee"]), fill["fee_asset"]
        self.fills[key] = quantity, quote, fee, fee_asset
        base, _, priced = taken.data["symbol"].partition("-")
        buying = taken.data["side"] == "buy"
        paid_asset, paid = (priced, quote) if buying else (base, quantity)
        got_asset, got = (base, quantity) if buying else (priced, quote)
        held_asset = taken.data["held_asset"]
        after = Decimal(data["set"]["held_amount"])
        venue = "venue:paper"
        wanted: Deltas = defaultdict(Decimal)
        wanted[venue, paid_asset] += paid
        wanted[venue, got_asset] -= got
        wanted[venue, fee_asset] += fee
        wanted["held", held_asset] += after - taken.held
        # What is no longer held and was not paid with comes back; the rest is paid with.
        wanted["available", held_asset] += taken.held - after
        wanted["available", paid_asset] -= paid
        wanted["available", got_asset] += got
        wanted["available", fee_asset] -= fee
        taken.held = after
        return wanted

    def _order_adopted(self, state: _Account, body: dict[str, Any]) -> Deltas:
        data = body["data"]["accepted"]
        if data["parent_id"] not in self.orders:
            self._findings.invented.append(f"{state.id}, {body['seq']}: adopted from nowhere")
        self.orders[data["id"]] = Taken(
            state.id, body["seq"], data, None, Decimal(data["held_amount"])
        )
        return {}

    def _order_other(self, state: _Account, body: dict[str, Any]) -> Deltas | None:
        data = body["data"]
        taken = self.orders.get(data["order"])
        if taken is None:
            self._findings.invented.append(f"{state.id}, {body['seq']}: of no order")
            return None
        after = Decimal(data.get("set", {}).get("held_amount", taken.held))
        released, asset = taken.held - after, taken.data["held_asset"]
        taken.held = after
        return {("held", asset): -released, ("available", asset): released}

    # Transfers

    def _transfer_created(self, state: _Account, body: dict[str, Any]) -> Deltas:
        data = body["data"]["transfer"]
        item = self._told.by_tag.get(data.get("metadata", {}).get("tag", ""))
        reverses = data.get("reverses")
        asset, amount = data["asset"], Decimal(data["amount"])
        if item is not None:
            self.places[state.id].append((body["seq"], item.asked))
            asset, amount = item.body["asset"], Decimal(item.body["amount"])
            same = (state.id, data["target_id"], data["asset"], Decimal(data["amount"]))
            asked = tuple(item.body[f"{side}_account_id"] for side in ("source", "target"))
            if same != (*asked, asset, amount):
                self._say(state, body, f"{same} was not asked for: {item.body}")
            pending = bool(item.body.get("pending"))
        else:
            pending = False
            if reverses is None:
                self._findings.invented.append(f"transfer {data['id']} was never asked for")
        if data["id"] in self.transfers:
            self._findings.duplicated.append(f"transfer {data['id']} was made twice")
        made = Made(
            state.id,
            data["target_id"],
            asset,
            amount,
            "pending" if pending else "posted",
            ZERO if pending else amount,
            body["seq"],
            item,
            reverses,
            expires_at=data.get("expires_at"),
        )
        self.transfers[data["id"]] = made
        if pending:
            return {("available", asset): -amount, ("held", asset): amount}
        self._sent(body, data["id"], made.target, asset, amount)
        if reverses is not None:
            self.reversed.append((reverses, data["id"]))
        return {("available", asset): -amount}

    def _sent(
        self, body: dict[str, Any], transfer: str, target: str, asset: str, amount: Decimal
    ) -> None:
        self._out[body["command"], transfer] = target, asset, amount
        self.shared[body["command"]].append((body["account"], body["seq"]))

    def _transfer_received(self, state: _Account, body: dict[str, Any]) -> Deltas | None:
        key = body["command"], body["data"]["transfer"]
        came = [(a, Decimal(x)) for h, a, x in body["postings"] if h == "available"]
        if len(came) != 1 or len(body["postings"]) != 1 or key in self._in:
            self._say(state, body, f"brings {body['postings']}")
            return None
        self._in[key] = state.id, *came[0]
        self.shared[body["command"]].append((state.id, body["seq"]))
        return None  # its amount is held against the sender's leg

    def _resolve(self, state: _Account, body: dict[str, Any]) -> tuple[str, Made] | None:
        transfer = body["data"]["transfer"]
        made = self.transfers.get(transfer)
        if made is None:
            self._findings.invented.append(f"{state.id}, {body['seq']}: of no transfer")
            return None
        if made.state != "pending":
            self._findings.duplicated.append(
                f"transfer {transfer} is resolved twice: {made.state}, then {body['kind']}"
            )
        made.state = made.resolved = body["kind"].partition(".")[2]
        made.resolved_seq = body["seq"]
        return transfer, made

    def _transfer_posted(self, state: _Account, body: dict[str, Any]) -> Deltas | None:
        found = self._resolve(state, body)
        if found is None:
            return None
        transfer, made = found
        made.posted = Decimal(body["data"]["set"]["posted_amount"])
        if not ZERO < made.posted <= made.amount:
            self._say(state, body, f"posts {made.posted} of {made.amount}")
        self._sent(body, transfer, made.target, made.asset, made.posted)
        rest = made.amount - made.posted
        return {("held", made.asset): -made.amount, ("available", made.asset): rest}

    def _transfer_voided(self, state: _Account, body: dict[str, Any]) -> Deltas | None:
        found = self._resolve(state, body)
        if found is None:
            return None
        _, made = found
        return {("held", made.asset): -made.amount, ("available", made.asset): made.amount}

    def _transfer_expired(self, state: _Account, body: dict[str, Any]) -> Deltas | None:
        found = self._resolve(state, body)
        if found is None:
            return None
        transfer, made = found
        if made.expires_at is None or body["at"] < made.expires_at:
            self._findings.invented.append(f"transfer {transfer} expired before its time")
        return {("held", made.asset): -made.amount, ("available", made.asset): made.amount}

    def finish(self) -> None:
        """Once every journal was seen: what left one account came in at another."""
        for key in {*self._out, *self._in}:
            if self._out.get(key) != self._in.get(key):
                self._findings.sums.append(
                    f"transfer {key[1]}: sent {self._out.get(key)}, received {self._in.get(key)}"
                )
        for transfer, by in self.reversed:
            made, reversal = self.transfers.get(transfer), self.transfers[by]
            if made is None or made.state != "posted":
                self._findings.invented.append(f"{by} reverses {transfer}, which is not posted")
                continue
            if made.reversed_by is not None:
                self._findings.duplicated.append(f"transfer {transfer} is reversed twice")
            made.reversed_by = by
            same = (made.target, made.source, made.asset, made.posted)
            if same != (reversal.source, reversal.target, reversal.asset, reversal.amount):
                self._findings.effects.append(f"{by} is no reversal of {transfer}")


def _nonzero(deltas: Deltas) -> dict[tuple[str, str], Decimal]:
    return {key: amount.normalize() for key, amount in deltas.items() if amount}


def _hold(order: dict[str, Any], scales: dict[str, int]) -> tuple[str, Decimal] | None:
    """What an order must hold; None where that follows from the market's price."""
    base, _, quote = order["symbol"].partition("-")
    if order["type"] == "limit":
        quantity, price = Decimal(order["quantity"]), Decimal(order["limit_price"])
        if order["side"] == "sell":
            return base, quantity
        grid = Decimal(1).scaleb(-scales[order["symbol"]])
        return quote, (quantity * price).quantize(grid, ROUND_UP)
    if order["side"] == "buy" and order["quote_amount"] is not None:
        return quote, Decimal(order["quote_amount"])
    return None
