"""The chaos checker finds what it is there to find, and nothing in a run that went well."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from chaos import check, story

from .conftest import ONE, ORDER, TWO, Run


async def _found(run: Run) -> dict[str, list[str]]:
    findings, _ = await check.examine(story.tell(run.log), run.books, run.venue)
    return {kind: texts for kind, texts in vars(findings).items() if texts}


async def test_a_good_run_is_found_to_be_good(run: Run) -> None:
    findings, figures = await check.examine(story.tell(run.log), run.books, run.venue)
    assert findings.all == []
    assert (figures["commands"], figures["acknowledged"]) == (6, 4)
    assert findings.counts()["chain_ok"] is True


async def test_an_unanswered_request_may_have_been_carried_out_once(run: Run) -> None:
    run.make("t8", "k8", "3")
    run.books.sum_up()
    assert await _found(run) == {}


def _lost_commit(run: Run) -> None:
    run.ask(9, "transfer", run.transfer(9, "1"))
    run.end(9, id="t9")


def _lost_order(run: Run) -> None:
    body = {"account_id": ONE, "symbol": "BTC-USDT", "side": "sell", "type": "market"}
    run.ask(9, "order", body | {"quote_amount": "5"})
    run.end(9, id="00000000-0000-0000-0000-0000000000f9")


def _lost_post(run: Run) -> None:
    for account in (ONE, TWO):
        run.books.drop_last(account)
    run.books.transfers["t5"] |= {"state": "pending", "posted_amount": Decimal(0)}


def _lost_cancel(run: Run) -> None:
    run.ask(9, "cancel", None, of=ORDER)
    run.end(9, id=ORDER)
    run.books.orders[0] |= {"state": "new"}


def _twice(run: Run) -> None:
    run.make("t4b", "k4", "10")


def _twice_under_a_lost_answer(run: Run) -> None:
    run.make("t8", "k8", "3")
    run.make("t8b", "k8", "3")


def _posted_twice(run: Run) -> None:
    run.post("t5", "15", "5")


def _reversed_twice(run: Run) -> None:
    for number in (9, 10):
        run.ask(number, "reverse", {}, of="t4")
        data = {"id": f"t{number}", "target_id": ONE, "asset": "USDT", "amount": "10"}
        data |= {"state": "posted", "posted_amount": "10", "reverses": "t4"}
        out = {"transfer": data, "command": f"t{number}"}
        run.books.add(TWO, "transfer.created", out, ("available", "USDT", "-10"))
        came = {"transfer": f"t{number}", "command": f"t{number}"}
        run.books.add(ONE, "transfer.received", came, ("available", "USDT", "10"))
        run.end(number, id=f"t{number}")


def _never_asked_for(run: Run) -> None:
    run.make("t9", None, "2")


def _refused_but_done(run: Run) -> None:
    run.make("t7", "k7", "100000")


def _voided_by_nobody(run: Run) -> None:
    _lost_post(run)
    run.log = [line for line in run.log if line["n"] != 6]
    data = {"transfer": "t5", "set": {"state": "voided"}}
    moved = ("held", "USDT", "-20"), ("available", "USDT", "20")
    run.books.add(ONE, "transfer.voided", data, *moved)


def _order_of_nobody(run: Run) -> None:
    run.log = [line for line in run.log if line["n"] != 3]


def _other_amount(run: Run) -> None:
    run.ask(9, "transfer", run.transfer(9, "1"))
    run.make("t9", "k9", "2")
    run.end(9, id="t9")


def _half_a_group(run: Run) -> None:
    items = [run.transfer(number, "1") for number in (90, 91)]
    run.ask(9, "linked", {"transfers": items})
    run.make("t90", "k90", "1", group_id="g")
    run.end(9, "abandoned", unclear=True)


def _more_arrives_than_left(run: Run) -> None:
    run.books.drop_last(TWO)
    came = {"transfer": "t5", "source_id": ONE, "command": "post-t5"}
    run.books.add(TWO, "transfer.received", came, ("available", "USDT", "16"))


def _one_sided_entry(run: Run) -> None:
    run.books.add(ONE, "order.canceled", {"order": ORDER}, ("available", "USDT", "1"))


def _out_of_time(run: Run) -> None:
    run.make("t8", "k8", "3")
    ask = next(n for n, line in enumerate(run.log) if (line["t"], line["n"]) == ("ask", 8))
    # Answered before the transfer that precedes it in the journal was asked for.
    lines = [run.log.pop(ask), run.log.pop(ask) | {"how": "ack", "id": "t8"}]
    run.log[4:4] = lines


def _below_zero(run: Run) -> None:
    run.ask(9, "transfer", run.transfer(9, "5000"))
    run.make("t9", "k9", "5000")
    run.end(9, id="t9")


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (_lost_commit, "lost"),
        (_lost_order, "lost"),
        (_lost_post, "lost"),
        (_lost_cancel, "lost"),
        (_twice, "duplicated"),
        (_twice_under_a_lost_answer, "duplicated"),
        (_posted_twice, "duplicated"),
        (_reversed_twice, "duplicated"),
        (_never_asked_for, "invented"),
        (_refused_but_done, "invented"),
        (_voided_by_nobody, "invented"),
        (_order_of_nobody, "invented"),
        (_other_amount, "effects"),
        (_half_a_group, "effects"),
        (_below_zero, "effects"),
        (_more_arrives_than_left, "sums"),
        (_one_sided_entry, "sums"),
        (_out_of_time, "order"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
async def test_damage_to_the_history_is_found(
    run: Run, plant: Callable[[Run], None], kind: str
) -> None:
    plant(run)
    run.books.sum_up()
    assert kind in await _found(run)


def _body(run: Run, number: int, **changes: Any) -> None:
    rows = run.books.rows[ONE]
    body = json.loads(rows[number].body) | changes
    rows[number] = replace(rows[number], body=json.dumps(body).encode())


def _edited(run: Run) -> None:
    _body(run, 1, kind="account.opened")


def _removed(run: Run) -> None:
    del run.books.rows[ONE][2]


def _tail_cut(run: Run) -> None:
    run.books.rows[ONE].pop()


def _column(run: Run) -> None:
    run.books.rows[ONE][1] = replace(run.books.rows[ONE][1], command="another")


@pytest.mark.parametrize("plant", [_edited, _removed, _tail_cut, _column])
async def test_damage_to_the_chain_is_found(run: Run, plant: Callable[[Run], None]) -> None:
    plant(run)
    assert "chain" in await _found(run)


def _balance(run: Run) -> None:
    available, held = run.books.balances[ONE, "USDT"]
    run.books.balances[ONE, "USDT"] = available + 1, held


def _counter(run: Run) -> None:
    run.books.counters["venue:paper", "USDT"] += 1


@pytest.mark.parametrize("plant", [_balance, _counter])
async def test_a_table_that_left_the_journal_is_found(
    run: Run, plant: Callable[[Run], None]
) -> None:
    plant(run)
    found = await _found(run)
    assert "effects" in found
    assert "sums" in found


async def test_a_transfer_s_row_that_differs_is_found(run: Run) -> None:
    run.books.transfers["t5"]["posted_amount"] = Decimal(20)
    assert "effects" in await _found(run)


def _execution_kept_quiet(run: Run) -> None:
    run.venue.orders[0]["executedQty"] = "0.002"


def _trade_missing(run: Run) -> None:
    run.venue.trades.clear()


def _balance_there(run: Run) -> None:
    run.venue.balances["USDT"] += 1


@pytest.mark.parametrize("plant", [_execution_kept_quiet, _trade_missing, _balance_there])
async def test_a_venue_that_disagrees_is_found(run: Run, plant: Callable[[Run], None]) -> None:
    plant(run)
    assert "venue" in await _found(run)


async def test_an_order_sent_twice_is_found(run: Run) -> None:
    run.venue.orders.append(run.venue.orders[0] | {"orderId": 71})
    assert "duplicated" in await _found(run)


@pytest.mark.parametrize(
    "line",
    [
        {"t": "again", "n": 4, "how": "ack", "status": 201, "sha": "other", "replayed": True},
        {"t": "again", "n": 4, "how": "ack", "status": 201, "sha": "s4", "replayed": False},
        {"t": "again", "n": 4, "how": "refused", "status": 422, "sha": "x", "replayed": True},
        {"t": "mutated", "n": 4, "status": 201, "code": ""},
        {"t": "mutated", "n": 4, "status": 422, "code": "validation_failed"},
        {"t": "fault", "n": 4, "status": 500},
        {"t": "items_again", "n": 4, "results": [[201, "t9"]]},
    ],
    ids=["other body", "not marked", "refused", "carried out", "other no", "fault", "other items"],
)
async def test_a_wrong_answer_is_found(run: Run, line: dict[str, Any]) -> None:
    run.log.append({"id": None, "code": ""} | line)
    assert "answers" in await _found(run)


@pytest.mark.parametrize(
    ("again", "fine"),
    [
        ([[422, None], [422, None]], True),
        ([[503, None], [422, None]], True),
        ([[503, None], [201, "t9"]], False),
        ([[422, None]], False),
        ([], False),
    ],
)
async def test_a_bulk_request_that_is_answered_otherwise_is_found(
    run: Run, again: list[Any], fine: bool
) -> None:
    run.ask(9, "bulk", {"transfers": [run.transfer(n, "100000") for n in (91, 92)]})
    run.log.append({"t": "items", "n": 9, "unclear": False, "results": [[422, None]] * 2})
    run.log.append({"t": "items_again", "n": 9, "results": again})
    run.end(9)
    assert ("answers" not in await _found(run)) is fine


async def test_a_request_without_a_clear_answer_is_found(run: Run) -> None:
    run.ask(9, "transfer", run.transfer(9, "1"))
    run.end(9, "gave_up", unclear=True)
    assert "unclear" in await _found(run)


async def test_streams_that_fit_into_no_single_order_are_found(run: Run) -> None:
    for number in (90, 91):
        run.ask(number, "transfer", run.transfer(number, "1"))
        run.end(number, "abandoned", unclear=True)
        run.make(f"t{number}", f"k{number}", "1")
    first, second = run.books.rows[TWO][-2:]
    del run.books.rows[TWO][-2:]
    for row in (second, first):
        body = json.loads(row.body)
        data = body["data"] | {"command": body["command"]}
        run.books.add(TWO, body["kind"], data, *body["postings"])
    run.books.sum_up()
    assert list(await _found(run)) == ["order"]
