"""The exchange's own records, by its signed REST interface, against what T-Bot made of them."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import httpx

from .data import Source
from .model import ZERO, Findings, Model

_PAGE = 1000
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass
class Venue:
    """What the exchange has of our account: orders, executions, balances."""

    orders: list[dict[str, Any]] = field(default_factory=list)
    trades: list[dict[str, Any]] = field(default_factory=list)
    balances: dict[str, Decimal] = field(default_factory=dict)


async def look(url: str, key: dict[str, Any]) -> Venue:
    """Read everything, page by page."""
    there = Venue()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        information = (await client.get("/api/v3/exchangeInfo")).json()
        for symbol in (s["symbol"] for s in information["symbols"]):
            for path, id_name, from_name, kept in (
                ("/api/v3/allOrders", "orderId", "orderId", there.orders),
                ("/api/v3/myTrades", "id", "fromId", there.trades),
            ):
                from_id, ends = 0, []
                while True:
                    query = {"symbol": symbol, from_name: from_id, "limit": _PAGE}
                    page = await _signed(client, key, path, query)
                    kept.extend(item for item in page if item not in ends)
                    if len(page) < _PAGE:
                        break
                    # Both sides of a trade between two orders of ours have its id, and a page may
                    # end between them.
                    from_id = page[-1][id_name]
                    ends = [item for item in page if item[id_name] == from_id]
        account = await _signed(client, key, "/api/v3/account", {})
    for balance in account["balances"]:
        there.balances[balance["asset"]] = Decimal(balance["free"]) + Decimal(balance["locked"])
    return there


async def _signed(
    client: httpx.AsyncClient, key: dict[str, Any], path: str, query: dict[str, Any]
) -> Any:
    text = urlencode(query | {"timestamp": int(time.time() * 1000), "recvWindow": 10_000})
    signature = hmac.new(key["api_secret"].encode(), text.encode(), hashlib.sha256).hexdigest()
    answer = await client.get(
        f"{path}?{text}&signature={signature}", headers={"X-MBX-APIKEY": key["api_key"]}
    )
    answer.raise_for_status()
    return answer.json()


def compare(there: Venue, model: Model, source: Source, findings: Findings) -> None:
    """No intent executed twice; both sides agree on every execution and every balance."""
    ours: dict[str, list[str]] = defaultdict(list)
    for row in source.orders:
        ours[venue_client_id(row["parent_id"] or row["id"])].append(row["id"])
    by_venue_id = {row["venue_order_id"]: row for row in source.orders if row["venue_order_id"]}
    per_client: Counter[str] = Counter()
    executed: dict[str, Decimal] = {}
    for order in there.orders:
        client_id = order.get("origClientOrderId") or order["clientOrderId"]
        per_client[order["clientOrderId"]] += 1
        executed[str(order["orderId"])] = Decimal(order["executedQty"])
        if client_id.startswith("tb") and client_id not in ours:
            findings.invented.append(f"the venue has {client_id}, which nobody placed")
    for client_id, times in per_client.items():
        if times > 1 and client_id.startswith("tb"):
            findings.duplicated.append(f"the venue has {client_id} {times} times")
    for row in source.orders:
        at_venue = executed.get(row["venue_order_id"] or "", ZERO)
        if at_venue != row["filled_quantity"]:
            findings.venue.append(
                f"order {row['id']}: {row['filled_quantity']} here, {at_venue} at the venue"
            )
    traded: dict[tuple[str, str], tuple[Decimal, Decimal, Decimal, str]] = {}
    for trade in there.trades:
        found = by_venue_id.get(str(trade["orderId"]))
        if found is None:
            findings.venue.append(f"trade {trade['id']} is of an order that is not ours")
            continue
        traded[found["id"], str(trade["id"])] = (
            Decimal(trade["qty"]),
            Decimal(trade["quoteQty"]),
            Decimal(trade["commission"]),
            trade["commissionAsset"],
        )
    for key in {*traded, *model.fills}:
        if traded.get(key) != model.fills.get(key):
            findings.venue.append(
                f"trade {key}: {model.fills.get(key)} here, {traded.get(key)} at the venue"
            )
    for (name, asset), amount in model.counters.items():
        if name == "venue:paper" and there.balances.get(asset, ZERO) != -amount:
            findings.venue.append(
                f"{asset}: {-amount} here, {there.balances.get(asset)} at the venue"
            )


def venue_client_id(order_id: str) -> str:
    """The id under which T-Bot sends an order: `tb` and its number in Crockford's base 32.

    Example:
        >>> venue_client_id("00000000-0000-0000-0000-000000000021")
        'tb00000000000000000000000011'
    """
    number, digits = int(order_id.replace("-", ""), 16), ""
    for _ in range(26):
        number, value = divmod(number, 32)
        digits = _DIGITS[value] + digits
    return "tb" + digits
