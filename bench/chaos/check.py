"""What the clients were told, held against the database and against the exchange.

Shares no code with the server: SQL, the exchange's own signed REST interface, and the clients' log.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import asyncpg
import httpx

from .load import Log

SETTLE_TIMEOUT_S = 90.0
_UNSETTLED = "('pending_new', 'unknown', 'pending_cancel', 'pending_replace')"
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass
class Findings:
    """What does not hold; all empty when everything does."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)
    stream: list[str] = field(default_factory=list)
    venue: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    chain: list[str] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[str]:
        """Every sentence, with its kind."""
        return [f"{kind}: {text}" for kind, texts in vars(self).items() for text in texts]


async def settle(connection: asyncpg.Connection[Any]) -> list[str]:
    """Wait until no order's outcome is open; what is still open when patience ends."""
    until_s = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        rows = await connection.fetch(
            f"SELECT id, state FROM orders WHERE state IN {_UNSETTLED} ORDER BY id"
        )
        if not rows or time.monotonic() > until_s:
            return [f"order {row['id']} is still {row['state']}" for row in rows]
        await asyncio.sleep(0.5)


async def check_orders(
    connection: asyncpg.Connection[Any], log: Log, accounts: list[str], findings: Findings
) -> int:
    """Acknowledged orders are there once, and none is there that nobody asked for."""
    asked = {line["client_order_id"]: line for line in log.of("ask")}
    acked: dict[str, set[str]] = defaultdict(set)
    for line in log.of("ack"):
        acked[line["client_order_id"]].add(line["id"])
    rows = await connection.fetch(
        "SELECT id, account_id, client_order_id, symbol, side, type FROM orders"
        " WHERE account_id = ANY($1::uuid[]) AND parent_id IS NULL",
        accounts,
    )
    stored: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        stored[row["client_order_id"]].append(row)
    for client_id, ids in acked.items():
        found = stored.get(client_id, [])
        if not found:
            findings.lost.append(f"{client_id} was acknowledged as {sorted(ids)}")
        if len(found) > 1 or len(ids) > 1:
            findings.duplicated.append(f"{client_id}: told {sorted(ids)}, stored {len(found)}")
        if found and str(found[0]["id"]) not in ids:
            findings.lost.append(f"{client_id} is stored under another id than was told")
    for client_id, found in stored.items():
        order = asked.get(client_id)
        if order is None:
            findings.invented.append(f"{client_id} was never asked for")
        elif any(str(found[0][name]) != order[name] for name in ("symbol", "side", "type")):
            findings.invented.append(f"{client_id} has other content than was asked for")
    for line in log.of("mutated"):
        if line["status"] != 422:
            findings.answers.append(
                f"{line['client_order_id']} with other content: {line['status']}"
            )
    return len(acked)


async def check_fills(connection: asyncpg.Connection[Any], findings: Findings) -> None:
    """Each order's executions are the sum of its fills."""
    rows = await connection.fetch(
        "SELECT o.id, o.filled_quantity, coalesce(sum(f.quantity), 0) AS booked FROM orders o"
        " LEFT JOIN fills f ON f.order_id = o.id GROUP BY o.id"
        " HAVING o.filled_quantity <> coalesce(sum(f.quantity), 0)"
    )
    findings.lost.extend(f"order {row['id']}: fills {row['booked']}" for row in rows)


async def check_sums(connection: asyncpg.Connection[Any], findings: Findings) -> None:
    """Every asset sums to zero, and no hold outlives its orders."""
    rows = await connection.fetch(
        "SELECT asset, sum(a) AS total FROM (SELECT asset, available + held AS a FROM balances"
        " UNION ALL SELECT asset, amount FROM counters) x GROUP BY asset HAVING sum(a) <> 0"
    )
    findings.sums.extend(f"{row['asset']} sums to {row['total']}" for row in rows)
    rows = await connection.fetch(
        "SELECT b.account_id, b.asset, b.held FROM balances b WHERE b.held <> (SELECT"
        " coalesce(sum(o.held_amount), 0) FROM orders o WHERE o.account_id = b.account_id"
        " AND o.held_asset = b.asset)"
    )
    findings.sums.extend(f"{row['account_id']} holds {row['held']} {row['asset']}" for row in rows)


async def check_chain(connection: asyncpg.Connection[Any], findings: Findings) -> int:
    """Each account's entries are 1, 2, 3 … and each hash is that of its predecessor and body."""
    entries = 0
    for stream in await connection.fetch("SELECT account_id, seq, hash FROM streams"):
        account = stream["account_id"]
        digest, expected = hashlib.sha256(f"tbot:1:{account}".encode()).digest(), 0
        for row in await connection.fetch(
            "SELECT seq, body, hash FROM journal WHERE account_id = $1 ORDER BY seq", account
        ):
            expected += 1
            entries += 1
            digest = hashlib.sha256(digest + row["body"]).digest()
            if row["seq"] != expected or row["hash"] != digest:
                findings.chain.append(f"{account} breaks at {expected}")
                break
        if stream["seq"] != expected or (expected and stream["hash"] != digest):
            findings.chain.append(f"{account}: head {stream['seq']}, journal {expected}")
    return entries


async def check_streams(connection: asyncpg.Connection[Any], log: Log, findings: Findings) -> None:
    """Every subscriber saw every entry once, in order, across all its reconnections."""
    last: dict[str, int] = {}
    hashes: dict[tuple[str, int], str] = {}
    for line in log.lines:
        if line["t"] == "snap":
            if line["account"] in last:
                findings.stream.append(f"{line['account']} was reset at {last[line['account']]}")
            last[line["account"]] = line["seq"]
        elif line["t"] == "subbed" and line["at"] and not line["sub"].get("recovered"):
            findings.stream.append(f"{line['account']} could not resume at {line['at']}")
        elif line["t"] == "entry":
            if line["seq"] != last[line["account"]] + 1:
                findings.stream.append(
                    f"{line['account']}: {line['seq']} after {last[line['account']]}"
                )
            last[line["account"]] = line["seq"]
            hashes[line["account"], line["seq"]] = line["hash"]
    for account, seq in last.items():
        head = await connection.fetchval("SELECT seq FROM streams WHERE account_id = $1", account)
        if seq != head:
            findings.stream.append(f"{account}: the client is at {seq}, the journal at {head}")
        for row in await connection.fetch(
            "SELECT seq, encode(hash, 'hex') AS hash FROM journal WHERE account_id = $1", account
        ):
            told = hashes.get((account, row["seq"]))
            if told is not None and not row["hash"].startswith(told):
                findings.stream.append(f"{account}: entry {row['seq']} differs from what was sent")


async def outcomes(connection: asyncpg.Connection[Any]) -> dict[str, int]:
    """How many orders ended how."""
    rows = await connection.fetch(
        "SELECT state || coalesce(' ' || split_part(reason, ':', 1), '') AS how, count(*) AS n"
        " FROM orders GROUP BY 1 ORDER BY 2 DESC"
    )
    return {row["how"]: row["n"] for row in rows}


async def check_venue(
    connection: asyncpg.Connection[Any], url: str, key: dict[str, Any], findings: Findings
) -> int:
    """No intent executed twice, and both sides agree on every execution and every balance."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        information = (await client.get("/api/v3/exchangeInfo")).json()
        found: list[dict[str, Any]] = []
        for symbol in (s["symbol"] for s in information["symbols"]):
            from_id = 0
            while True:
                page = await _signed(
                    client, key, "/api/v3/allOrders", symbol=symbol, orderId=from_id, limit=1000
                )
                found += page
                if len(page) < 1000:
                    break
                from_id = max(order["orderId"] for order in page) + 1
        account = await _signed(client, key, "/api/v3/account")
    per_client = Counter(order["clientOrderId"] for order in found)
    ours = {
        _venue_client_id(row["parent_id"] or row["id"]): row
        for row in await connection.fetch(
            "SELECT id, parent_id, state, filled_quantity FROM orders"
            " ORDER BY parent_id NULLS FIRST"
        )
    }
    executed: dict[str, Decimal] = defaultdict(Decimal)
    for order in found:
        client_id = order.get("origClientOrderId") or order["clientOrderId"]
        executed[str(order["orderId"])] += Decimal(order["executedQty"])
        if client_id.startswith("tb") and client_id not in ours:
            findings.invented.append(f"the venue has {client_id}, which nobody placed")
    for client_id, times in per_client.items():
        if times > 1 and client_id.startswith("tb"):
            findings.duplicated.append(f"the venue has {client_id} {times} times")
    for row in await connection.fetch("SELECT id, venue_order_id, filled_quantity FROM orders"):
        venue_id = row["venue_order_id"]
        there = executed.get(venue_id, Decimal(0)) if venue_id else Decimal(0)
        if there != row["filled_quantity"]:
            findings.venue.append(
                f"order {row['id']}: {row['filled_quantity']} here, {there} at the venue"
            )
    shown = {b["asset"]: Decimal(b["free"]) + Decimal(b["locked"]) for b in account["balances"]}
    for row in await connection.fetch(
        "SELECT asset, -sum(amount) AS owed FROM counters WHERE name = 'venue:paper' GROUP BY 1"
    ):
        if shown.get(row["asset"], Decimal(0)) != row["owed"]:
            findings.venue.append(
                f"{row['asset']}: {row['owed']} here, {shown.get(row['asset'])} at the venue"
            )
    return len(found)


def _venue_client_id(order_id: Any) -> str:
    number, digits = order_id.int, ""
    for _ in range(26):
        number, value = divmod(number, 32)
        digits = _DIGITS[value] + digits
    return "tb" + digits


async def _signed(client: httpx.AsyncClient, key: dict[str, Any], path: str, **query: Any) -> Any:
    text = urlencode(query | {"timestamp": int(time.time() * 1000), "recvWindow": 10_000})
    signature = hmac.new(key["api_secret"].encode(), text.encode(), hashlib.sha256).hexdigest()
    answer = await client.get(
        f"{path}?{text}&signature={signature}", headers={"X-MBX-APIKEY": key["api_key"]}
    )
    answer.raise_for_status()
    return answer.json()
