"""A small world written by hand, as clients, database and venue would have it after a good run."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "bench"))

from chaos.data import Row
from chaos.venue import Venue, venue_client_id

ONE, TWO = "00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"
ORDER = "00000000-0000-0000-0000-0000000000f1"
ZERO = Decimal(0)


class Books:
    """Journals, and the tables that follow from them: a `chaos.data.Source` in memory."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = defaultdict(list)
        self.streams: dict[str, tuple[int, bytes]] = {}
        self.balances: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
        self.counters: dict[tuple[str, str], Decimal] = {}
        self.orders: list[dict[str, Any]] = []
        self.fills: dict[tuple[str, str], tuple[Decimal, Decimal, Decimal, str]] = {}
        self.transfers: dict[str, dict[str, Any]] = {}
        self.scales = {"BTC-USDT": 8}

    def add(
        self, account: str, kind: str, data: dict[str, Any], *postings: tuple[str, str, str]
    ) -> None:
        """Append an entry; entries that are to share a command name it in `data`."""
        rows = self.rows[account]
        seq = len(rows) + 1
        body = {
            "account": account,
            "seq": seq,
            "at": f"2026-01-01T00:00:00.{seq:06}Z",
            "kind": kind,
            "command": data.pop("command", f"{account}-{seq}"),
            "postings": postings,
            "data": data,
        }
        before = rows[-1].hash if rows else hashlib.sha256(f"tbot:1:{account}".encode()).digest()
        raw = json.dumps(body).encode()
        rows.append(
            Row(seq, body["command"], kind, body["at"], raw, hashlib.sha256(before + raw).digest())
        )

    def sum_up(self) -> None:
        """Bring heads, balances and counters up to the journals."""
        self.balances, self.counters = {}, {}
        for account, rows in self.rows.items():
            self.streams[account] = rows[-1].seq, rows[-1].hash
            for row in rows:
                for holder, asset, amount in json.loads(row.body)["postings"]:
                    available, held = self.balances.get((account, asset), (ZERO, ZERO))
                    if holder == "available":
                        self.balances[account, asset] = available + Decimal(amount), held
                    elif holder == "held":
                        self.balances[account, asset] = available, held + Decimal(amount)
                    else:
                        before = self.counters.get((holder, asset), ZERO)
                        self.counters[holder, asset] = before + Decimal(amount)

    def drop_last(self, account: str) -> None:
        """Take an account's newest entry back, as a database would that lost a commit."""
        self.rows[account].pop()
        self.sum_up()

    async def journal(self, account: str) -> list[Row]:
        """An account's entries by sequence."""
        return self.rows[account]


class Run:
    """What a run leaves behind: the clients' log, the database, the venue."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []
        self.books = Books()
        self.venue = Venue()

    def ask(self, n: int, kind: str, body: dict[str, Any] | None, **more: Any) -> None:
        """A client is about to ask."""
        line = {"t": "ask", "n": n, "kind": kind, "path": "/", "body": body, "key": f"k{n}"}
        self.log.append(line | more)

    def end(self, n: int, how: str = "ack", **more: Any) -> None:
        """A client was answered."""
        status = {"ack": 201, "refused": 422}.get(how, 0)
        line = {"t": "end", "n": n, "how": how, "status": status, "code": "", "id": None}
        self.log.append(line | {"sha": f"s{n}", "replayed": False, "unclear": False} | more)

    def transfer(self, n: int, amount: str, **more: Any) -> dict[str, Any]:
        """The body of a transfer from one account to the other."""
        return {
            "source_account_id": ONE,
            "target_account_id": TWO,
            "asset": "USDT",
            "amount": amount,
            "metadata": {"tag": f"k{n}"},
        } | more

    def make(self, id_: str, tag: str | None, amount: str, **more: Any) -> None:
        """The source's entry of a posted transfer, and the target's."""
        data = {"id": id_, "target_id": TWO, "asset": "USDT", "amount": amount, "state": "posted"}
        data |= {"posted_amount": amount} | more
        if tag is not None:
            data["metadata"] = {"tag": tag}
        out = {"transfer": data, "command": id_}
        self.books.add(ONE, "transfer.created", out, ("available", "USDT", f"-{amount}"))
        came = {"transfer": id_, "source_id": ONE, "command": id_}
        self.books.add(TWO, "transfer.received", came, ("available", "USDT", amount))
        self.books.transfers[id_] = self._row(id_, amount, "posted", amount, more)

    def _row(
        self, id_: str, amount: str, state: str, posted: str, more: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": id_,
            "source_id": ONE,
            "target_id": TWO,
            "asset": "USDT",
            "amount": Decimal(amount),
            "state": state,
            "posted_amount": Decimal(posted),
            "reverses": more.get("reverses"),
            "reversed_by": None,
        }

    def hold(self, id_: str, tag: str, amount: str) -> None:
        """The source's entry of a pending transfer."""
        data = {"id": id_, "target_id": TWO, "asset": "USDT", "amount": amount, "state": "pending"}
        data["metadata"] = {"tag": tag}
        moved = ("available", "USDT", f"-{amount}"), ("held", "USDT", amount)
        self.books.add(ONE, "transfer.created", {"transfer": data}, *moved)
        self.books.transfers[id_] = self._row(id_, amount, "pending", "0", {})

    def post(self, id_: str, amount: str, rest: str) -> None:
        """A pending transfer is posted in part."""
        whole = Decimal(amount) + Decimal(rest)
        data = {"transfer": id_, "set": {"state": "posted", "posted_amount": amount}}
        data["command"] = f"post-{id_}"
        moved = ("held", "USDT", f"-{whole}"), ("available", "USDT", rest)
        self.books.add(ONE, "transfer.posted", data, *moved)
        came = {"transfer": id_, "source_id": ONE, "command": f"post-{id_}"}
        self.books.add(TWO, "transfer.received", came, ("available", "USDT", amount))
        self.books.transfers[id_] |= {"state": "posted", "posted_amount": Decimal(amount)}


def _open(run: Run, n: int, account: str) -> None:
    run.ask(n, "account", {"venue": "paper", "starting_balance": {"USDT": "1000"}})
    run.end(n, id=account)
    run.books.add(account, "account.opened", {})
    deposit = ("venue:paper", "USDT", "-1000"), ("available", "USDT", "1000")
    run.books.add(account, "account.deposited", {"asset": "USDT", "amount": "1000"}, *deposit)


def _buy(run: Run, n: int) -> None:
    """A limit order that executes at once."""
    body = {"account_id": ONE, "symbol": "BTC-USDT", "side": "buy", "type": "limit"}
    body |= {"quantity": "0.001", "limit_price": "50000", "client_order_id": f"k{n}"}
    run.ask(n, "order", body)
    run.end(n, id=ORDER)
    order = body | {"id": ORDER, "parent_id": None, "quote_amount": None}
    order |= {"held_asset": "USDT", "held_amount": "50"}
    hold = ("available", "USDT", "-50"), ("held", "USDT", "50")
    run.books.add(ONE, "order.accepted", {"accepted": order}, *hold)
    fill = {"trade_id": "7", "quantity": "0.001", "quote_quantity": "49", "fee": "0.000001"}
    data = {"order": ORDER, "set": {"held_amount": "0"}, "fill": fill | {"fee_asset": "BTC"}}
    run.books.add(
        ONE,
        "order.filled",
        data,
        ("held", "USDT", "-50"),
        ("available", "USDT", "1"),
        ("venue:paper", "USDT", "49"),
        ("venue:paper", "BTC", "-0.000999"),
        ("available", "BTC", "0.000999"),
    )
    quantity, quote, fee = Decimal("0.001"), Decimal(49), Decimal("0.000001")
    run.books.fills[ORDER, "7"] = quantity, quote, fee, "BTC"
    run.books.orders.append(
        {"id": ORDER, "parent_id": None, "state": "filled", "filled_quantity": quantity}
        | {"held_amount": ZERO, "cancel_requested": False, "venue_order_id": "70"}
    )
    name = venue_client_id(ORDER)
    run.venue.orders.append({"orderId": 70, "clientOrderId": name, "executedQty": "0.001"})
    trade = {"id": 7, "orderId": 70, "qty": "0.001", "quoteQty": "49"}
    run.venue.trades.append(trade | {"commission": "0.000001", "commissionAsset": "BTC"})
    run.venue.balances = {"USDT": Decimal(1951), "BTC": Decimal("0.000999")}


@pytest.fixture
def run() -> Run:
    """A good run: two accounts, an order, a transfer, a part-posted one, a refusal, a repetition."""
    made = Run()
    _open(made, 1, ONE)
    _open(made, 2, TWO)
    _buy(made, 3)
    made.ask(4, "transfer", made.transfer(4, "10"))
    made.make("t4", "k4", "10")
    made.end(4, id="t4")
    made.log.append({**made.log[-1], "t": "again", "replayed": True})
    made.ask(5, "pending", made.transfer(5, "20", pending=True))
    made.hold("t5", "k5", "20")
    made.end(5, id="t5")
    made.ask(6, "post", {"amount": "15"}, of="t5")
    made.post("t5", "15", "5")
    made.end(6, id="t5")
    made.ask(7, "transfer", made.transfer(7, "100000"))
    made.end(7, "refused", code="insufficient_funds")
    made.log.append({"t": "mutated", "n": 4, "status": 422, "code": "idempotency_key_reused"})
    made.ask(8, "transfer", made.transfer(8, "3"))
    made.end(8, "abandoned", unclear=True)
    made.books.sum_up()
    return made
