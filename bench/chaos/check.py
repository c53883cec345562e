"""The clients' log, the database and the venue, held against each other through the model.

Shares no code with the server: the log, plain SQL, the exchange's own signed REST interface, and
the rule of the hash chain as it is documented.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from decimal import Decimal
from typing import Any

from .data import Source
from .model import ZERO, Findings, Made, Model, Taken
from .story import NEVER, PASSING, Asked, Story, Verdict
from .venue import Venue, compare
from .watch import HASH_BYTES, Watcher

COUNTED = (
    "lost",
    "duplicated",
    "invented",
    "effects",
    "order",
    "answers",
    "unclear",
    "stuck",
    "stream",
    "venue",
    "processes",
)
FINAL = frozenset({"filled", "canceled", "rejected", "expired"})
_COMMANDS = ("order", "cancel", "transfer", "pending", "post", "void", "reverse", "linked", "bulk")


async def examine(
    told: Story, source: Source, there: Venue | None
) -> tuple[Findings, dict[str, Any]]:
    """Everything that does not hold, and the figures of the run."""
    findings = Findings()
    model = Model(told, source.scales, findings)
    # Transfers resolved at their source are noted there: hence all journals before any comparison.
    for account, head in sorted(source.streams.items()):
        model.replay(account, await source.journal(account), head)
    model.finish()
    _check_answers(told, findings)
    _check_accounts(told, source, findings)
    _check_orders(told, model, source, findings)
    _check_cancels(told, source, findings)
    _check_transfers(told, model, findings)
    _check_resolutions(told, model, findings)
    _check_reversals(told, model, findings)
    _check_tables(model, source, findings)
    _check_moments(model, findings)
    _check_one_order(model, findings)
    if there is not None:
        compare(there, model, source, findings)
    return findings, _figures(told, model, source, there)


def _figures(told: Story, model: Model, source: Source, there: Venue | None) -> dict[str, Any]:
    asked = [a for a in told.requests.values() if a.kind in _COMMANDS]
    bulk = sum(status < 300 for a in asked for status, _ in a.results)
    acked = [a for a in asked if a.how == "ack" and a.kind != "bulk"]
    states = Counter(order["state"] for order in source.orders)
    return {
        "commands": len(asked) + sum(len(a.results) for a in asked) - len(told.of("bulk")),
        "acknowledged": len(acked) + bulk,
        "acknowledged_by_kind": dict(Counter(a.kind for a in acked)) | {"bulk_items": bulk},
        "refused": dict(Counter(a.code for a in asked if a.how == "refused").most_common()),
        "abandoned": sum(a.how == "abandoned" for a in asked),
        "repeated": sum(len(a.again) for a in asked),
        "mutated": len(told.mutated),
        "orders": dict(states.most_common()),
        "transfers": dict(Counter(made.state for made in model.transfers.values())),
        "fills": len(model.fills),
        "venue_orders": 0 if there is None else len(there.orders),
        "entries": model.entries,
    }


def _check_answers(told: Story, findings: Findings) -> None:
    """Clear answers in time, the same ones to repetitions, and a firm no to mutations."""
    for line in told.faults:
        findings.answers.append(f"request {line['n']} was answered {line['status']}")
    for line in told.mutated:
        if line["status"] != 422 or not line["code"].endswith("_reused"):
            findings.answers.append(
                f"{told.requests[line['n']]} with other content: {line['status']} {line['code']}"
            )
    for asked in told.requests.values():
        if asked.how in ("gave_up", "open"):
            findings.unclear.append(f"{asked} had no clear answer")
        for repeated in asked.repeated:
            # One of 500 and above says that it could not be looked at now: no other answer.
            told_now = [
                first if now[0] >= 500 else now
                for first, now in zip(asked.results, repeated, strict=False)
            ]
            if len(repeated) != len(asked.results) or told_now != asked.results:
                findings.answers.append(f"{asked}: items {asked.results} first, then {repeated}")
        for again in asked.again:
            if again["how"] not in ("ack", "refused"):
                continue
            if again["t"] == "twin" and again["code"] in PASSING:
                continue  # it came first, when the answer was another
            if asked.kept:
                same = (again["status"], again["sha"]) == (asked.status, asked.sha)
                # Of two at once one is the first; a later one is marked as a repetition.
                if not same or (again["t"] == "again" and not again["replayed"]):
                    findings.answers.append(f"{asked}: {asked.status} first, then {again}")
            elif asked.how == "ack" and asked.kind == "order" and again["id"] != asked.id:
                findings.answers.append(f"{asked}: order {asked.id} first, then {again}")


def _check_accounts(told: Story, source: Source, findings: Findings) -> None:
    """Accounts that were opened are there."""
    for asked in told.of("account"):
        if asked.verdict is Verdict.THERE and asked.id not in source.streams:
            findings.lost.append(f"{asked}: account {asked.id} is not there")


def _check_orders(told: Story, model: Model, source: Source, findings: Findings) -> None:
    found: dict[int, list[str]] = defaultdict(list)
    strangers: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for order_id, taken in model.orders.items():
        if taken.data["parent_id"] is not None:
            continue
        if taken.asked is not None:
            found[taken.asked.n].append(order_id)
            if _content(taken) != _wanted(taken.asked):
                findings.invented.append(f"order {order_id} has other content than {taken.asked}")
        else:
            strangers[_content(taken)].append(order_id)
    free: Counter[tuple[Any, ...]] = Counter()
    for asked in told.of("order"):
        ids = found[asked.n]
        if asked.verdict is Verdict.THERE and asked.id not in ids:
            findings.lost.append(f"{asked}: order {asked.id} is not there, but {ids}")
        if asked.verdict is Verdict.NOT_THERE and ids:
            findings.invented.append(f"{asked} was refused ({asked.code}), and made {ids}")
        if len(ids) > 1:
            findings.duplicated.append(f"{asked} made {ids}")
        if asked.verdict is Verdict.EITHER and not ids:
            free[_wanted(asked)] += 1
    # Without a client_order_id an order whose answer was lost is known by its content alone.
    for content, ids in strangers.items():
        if content[-1] is not None or len(ids) > free[content]:
            findings.invented.append(f"{ids} were never asked for: {content}")
    rows = {row["id"]: row for row in source.orders}
    for order_id in rows.keys() ^ model.orders.keys():
        findings.effects.append(f"order {order_id} is in the journal or in the table alone")
    booked: dict[str, Decimal] = defaultdict(Decimal)
    for (order_id, _), fill in model.fills.items():
        booked[order_id] += fill[0]
    for order_id, row in rows.items():
        if order_id not in model.orders:
            continue
        taken = model.orders[order_id]
        if row["filled_quantity"] != booked[order_id]:
            findings.lost.append(
                f"order {order_id}: {row['filled_quantity']}, fills {booked[order_id]}"
            )
        if row["held_amount"] != taken.held or (row["state"] in FINAL and taken.held):
            findings.effects.append(f"order {order_id} holds {row['held_amount']}, {taken.held}")
    if source.fills != model.fills:
        findings.effects.append("the fills' table is not what the journal says")


def _content(taken: Taken) -> tuple[Any, ...]:
    data = taken.data
    return (
        taken.account,
        *(data[name] for name in ("symbol", "side", "type")),
        *(_number(data[name]) for name in ("quantity", "quote_amount", "limit_price")),
        data["client_order_id"],
    )


def _wanted(asked: Asked) -> tuple[Any, ...]:
    body = asked.body or {}
    return (
        *(body[name] for name in ("account_id", "symbol", "side", "type")),
        *(_number(body.get(name)) for name in ("quantity", "quote_amount", "limit_price")),
        body.get("client_order_id"),
    )


def _number(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _check_cancels(told: Story, source: Source, findings: Findings) -> None:
    """An acknowledged cancel is on record, unless the order had ended."""
    rows = {row["id"]: row for row in source.orders}
    for asked in told.of("cancel"):
        row = rows.get(asked.of or "")
        if asked.verdict is Verdict.THERE and (
            row is None or not (row["cancel_requested"] or row["state"] in FINAL)
        ):
            findings.lost.append(f"{asked}: the cancel of order {asked.of} is not there")


def _check_transfers(told: Story, model: Model, findings: Findings) -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for transfer_id, made in model.transfers.items():
        if made.item is not None:
            found[made.item.body["metadata"]["tag"]].append(transfer_id)
    groups: dict[int, int] = Counter()
    for tag, item in told.by_tag.items():
        ids = found[tag]
        if len(ids) > 1:
            findings.duplicated.append(f"{item.asked}, {tag} made {ids}")
        if item.verdict is Verdict.THERE and (not ids or item.id not in (None, *ids)):
            findings.lost.append(f"{item.asked}, {tag}: transfer {item.id} is not there, but {ids}")
        if item.verdict is Verdict.NOT_THERE and ids:
            findings.invented.append(f"{item.asked}, {tag} was refused, and made {ids}")
        if item.asked.kind == "linked":
            groups[item.asked.n] += bool(ids)
    for number, made_of in groups.items():
        asked = told.requests[number]
        if made_of not in (0, len((asked.body or {})["transfers"])):
            findings.effects.append(f"{asked}: only {made_of} of its transfers are there")


def _check_resolutions(told: Story, model: Model, findings: Findings) -> None:
    """Each pending transfer ended once, in a way that somebody asked for."""
    asked_of: dict[str, list[Asked]] = defaultdict(list)
    for asked in told.of("post", "void"):
        asked_of[asked.of or ""].append(asked)
    for transfer_id, requests in asked_of.items():
        made = model.transfers.get(transfer_id)
        if made is None:
            findings.lost.append(f"{requests[0]}: transfer {transfer_id} is not there")
            continue
        for asked in requests:
            if asked.verdict is Verdict.THERE and not _did(asked, made):
                findings.lost.append(f"{asked}: transfer {transfer_id} is {made.state}")
        if sum(asked.verdict is Verdict.THERE for asked in requests) > 1:
            findings.duplicated.append(f"two of {[str(a) for a in requests]} were acknowledged")
    for transfer_id, made in model.transfers.items():
        if made.resolved not in ("posted", "voided"):
            continue
        causes = [
            asked
            for asked in asked_of[transfer_id]
            if asked.verdict is not Verdict.NOT_THERE and _did(asked, made)
        ]
        if not causes:
            findings.invented.append(f"nobody asked for transfer {transfer_id} to be {made.state}")
        else:
            cause = min(causes, key=lambda asked: asked.verdict is not Verdict.THERE)
            model.places[made.source].append((made.resolved_seq, cause))


def _did(asked: Asked, made: Made) -> bool:
    if asked.kind == "void":
        return made.resolved == "voided"
    part = (asked.body or {}).get("amount")
    return made.resolved == "posted" and made.posted == (Decimal(part) if part else made.amount)


def _check_reversals(told: Story, model: Model, findings: Findings) -> None:
    asked_of: dict[str, list[Asked]] = defaultdict(list)
    for asked in told.of("reverse"):
        asked_of[asked.of or ""].append(asked)
        made = model.transfers.get(asked.id or "")
        if asked.verdict is Verdict.THERE and (made is None or made.reverses != asked.of):
            findings.lost.append(f"{asked}: reversal {asked.id} of {asked.of} is not there")
    for transfer_id, by in model.reversed:
        causes = [
            asked
            for asked in asked_of[transfer_id]
            if asked.id == by or asked.verdict is Verdict.EITHER
        ]
        if not causes:
            findings.invented.append(f"nobody asked for {by}, which reverses {transfer_id}")
        elif len(causes) == 1:
            made = model.transfers[by]
            model.places[made.source].append((made.seq, causes[0]))


def _check_tables(model: Model, source: Source, findings: Findings) -> None:
    """Balances, counters and transfers are what the model has after every entry."""
    totals: dict[str, Decimal] = defaultdict(Decimal)
    for key in {*model.balances, *source.balances}:
        wanted = model.balances.get(key, (ZERO, ZERO))
        found = source.balances.get(key, (ZERO, ZERO))
        totals[key[1]] += sum(found)
        if wanted != found:
            findings.effects.append(f"balance {key} is {found}, not {wanted}")
    for counter in {*model.counters, *source.counters}:
        amount = source.counters.get(counter, ZERO)
        totals[counter[1]] += amount
        if model.counters.get(counter, ZERO) != amount:
            findings.effects.append(f"{counter} is {amount}, not {model.counters.get(counter)}")
    findings.sums += [f"{asset} sums to {total}" for asset, total in totals.items() if total]
    for transfer_id in {*model.transfers, *source.transfers}:
        made, row = model.transfers.get(transfer_id), source.transfers.get(transfer_id)
        if made is None or row is None:
            findings.effects.append(f"transfer {transfer_id} is in journal or table alone")
            continue
        wanted_row = {
            "source_id": made.source,
            "target_id": made.target,
            "asset": made.asset,
            "amount": made.amount,
            "state": made.state,
            "posted_amount": made.posted,
            "reverses": made.reverses,
            "reversed_by": made.reversed_by,
        }
        found_row = {name: row[name] for name in wanted_row}
        if wanted_row != found_row:
            findings.effects.append(f"transfer {transfer_id} is {found_row}, not {wanted_row}")


def _check_moments(model: Model, findings: Findings) -> None:
    """Per account: what was acknowledged before another was asked for comes before it."""
    for account, places in model.places.items():
        latest, by = -1, None
        for seq, asked in sorted(places, key=lambda place: place[0]):
            over = asked.ended if asked.how == "ack" else NEVER  # else it may still be under way
            if by is not None and over < latest:
                findings.order.append(f"{account}, {seq}: {asked} was over before {by} began")
            if asked.began > latest:
                latest, by = asked.began, asked


def _check_one_order(model: Model, findings: Findings) -> None:
    """The accounts' sequences fit into one order of all commands that touch several accounts."""
    queues: dict[str, deque[str]] = {}
    places: dict[str, list[tuple[int, str]]] = defaultdict(list)
    waiting: dict[str, int] = {}
    for command, entries in model.shared.items():
        accounts: dict[str, int] = {}
        for account, seq in entries:
            accounts[account] = min(seq, accounts.get(account, seq))
        waiting[command] = len(accounts)
        for account, seq in accounts.items():
            places[account].append((seq, command))
    for account, listed in places.items():
        queues[account] = deque(command for _, command in sorted(listed))
    ready = [queue[0] for queue in queues.values()]
    where: dict[str, list[str]] = defaultdict(list)
    for account, queue in queues.items():
        for command in queue:
            where[command].append(account)
    while ready:
        command = ready.pop()
        waiting[command] -= 1
        if waiting[command]:
            continue
        del waiting[command]
        for account in where[command]:
            queues[account].popleft()
            if queues[account]:
                ready.append(queues[account][0])
    if waiting:
        findings.order.append(f"{len(waiting)} commands fit into no single order: {[*waiting][:3]}")


async def watched(watcher: Watcher, source: Source) -> list[str]:
    """What a subscriber was given, against the journal."""
    head = source.streams[watcher.account][0]
    if watcher.seq != head:
        return [f"{watcher.account}: the client is at {watcher.seq}, the journal at {head}"]
    rows = await source.journal(watcher.account)
    wanted = b"".join(row.hash[:HASH_BYTES] for row in rows[watcher.first :])
    if wanted != bytes(watcher.hashes):
        return [f"{watcher.account}: what was sent differs from the journal"]
    return []
