"""The log: torn ends are cut, damage refuses, compaction loses nothing."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tbot.core.errors import DataDirectoryError
from tbot.exchange.commandlog import CommandLog, body_of, line, restore, write_state
from tbot.exchange.model import Deposited, Record
from tbot.exchange.outcome import Outcome
from tbot.exchange.state import State

SESSION = "s-1"


def opened(directory: Path, number: int = 0) -> CommandLog:
    log = CommandLog(directory, SESSION, number, fsync=False)
    log.open()
    return log


def deposit(name: str) -> Record:
    return Record(0, 5, [Deposited(name, "main", "USDT", Decimal(10))])


def fresh() -> State:
    return State(orders_kept=100, executions_kept=100)


def restored(directory: Path) -> tuple[State, str | None, int]:
    state = fresh()
    session, number = restore(directory, state)
    return state, session, number


def test_a_line_carries_its_checksum() -> None:
    assert body_of(line(b'{"a":1}')) == b'{"a":1}'
    assert body_of(line(b'{"a":1}')[:-1]) is None
    assert body_of(line(b'{"a":1}').replace(b"1", b"2")) is None


def test_an_empty_directory_has_no_session(tmp_path: Path) -> None:
    assert restored(tmp_path)[1:] == (None, 0)


def test_records_come_back_and_a_torn_one_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = opened(tmp_path)
    for name in ("a", "b", "c"):
        log.append(deposit(name))
    assert log.is_dirty
    log.close()
    path = next(tmp_path.glob("log-*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    state, session, number = restored(tmp_path)
    assert (session, number) == (SESSION, 2)
    assert state.account("main").free("USDT") == Decimal(20)
    assert "torn_record_cut" in capsys.readouterr().out
    again = opened(tmp_path, number)
    again.append(deposit("d"))
    again.close()
    state, _, number = restored(tmp_path)
    assert (number, set(state.deposits)) == (3, {"a", "b", "d"})


def test_damage_before_the_end_refuses_to_start(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append(deposit("a"))
    log.append(deposit("b"))
    log.close()
    path = next(tmp_path.glob("log-*"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"10", b"99") + lines[2])
    with pytest.raises(DataDirectoryError, match="damaged at byte"):
        restored(tmp_path)


def test_a_missing_log_file_refuses_to_start(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.append(deposit("a"))
    first.close()
    second = opened(tmp_path, 1)
    second.append(deposit("b"))
    second.close()
    (tmp_path / "log-000000000001.jsonl").unlink()
    with pytest.raises(DataDirectoryError, match="record 1 is missing"):
        restored(tmp_path)


def test_compaction_keeps_everything(tmp_path: Path, pit: Any) -> None:
    pit.book([("100.00", "2")], [("101.00", "1"), ("102.00", "4")])
    log = opened(tmp_path)
    for name in ("USDT", "BTC"):
        log.append(Record(0, 1, [d for d in pit.state.deposits.values() if d.asset == name]))
    for outcome in (
        pit.order("BUY", "2"),
        pit.order("SELL", "1", "105.00", client_id="rests"),
        pit.order("BUY", "1", "90.00"),
    ):
        assert isinstance(outcome, Outcome)
        log.append(Record(0, 2, outcome.effects))
    log.close()
    from_log, _, number = restored(tmp_path)
    write_state(tmp_path, SESSION, number, from_log)
    assert not list(tmp_path.glob("log-*"))
    state, session, again = restored(tmp_path)
    assert (session, again) == (SESSION, number)
    assert state.imbalance() == {}
    assert state.orders == from_log.orders
    assert state.account("main").executions == from_log.account("main").executions
    assert state.find("main", None, "rests") is not None
    assert state.next_order_id == from_log.next_order_id
    assert state.printed == from_log.printed
    assert [o.id for o in state.open_orders("main", None)] == [2, 3]
    log = opened(tmp_path, again)
    log.append(deposit("later"))
    log.close()
    assert restored(tmp_path)[2] == number + 1
