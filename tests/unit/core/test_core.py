"""Ids, wake-ups, owned tasks and clean logs."""

from __future__ import annotations

import asyncio
import json
from uuid import UUID

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tbot.core import log
from tbot.core.bus import EVERYTHING, Bus, wait_for_wake
from tbot.core.ids import new_id, order_id_of, venue_client_id
from tbot.core.tasks import Tasks


def test_ids_are_version_7_and_sort_by_creation() -> None:
    ids = [new_id() for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {i.version for i in ids} == {7}


@given(st.uuids())
def test_venue_ids_are_reversible_letters_and_digits(order_id: UUID) -> None:
    text = venue_client_id(order_id)
    assert text.isalnum()
    assert len(text) <= 32
    assert order_id_of(text) == order_id


@given(st.text(max_size=40))
def test_foreign_ids_are_not_ours(text: str) -> None:
    found = order_id_of(text)
    assert found is None or venue_client_id(found) == text


async def test_a_wake_up_reaches_its_listeners_only() -> None:
    bus = Bus()
    with bus.listening("a") as a, bus.listening("b", "c") as b:
        bus.wake(["c"])
        assert not a.is_set()
        assert await wait_for_wake(b, 1.0)
        assert not b.is_set()
        bus.wake([EVERYTHING])
        assert a.is_set()
        assert b.is_set()
    bus.wake(["a", "b"])


async def test_a_failure_that_somebody_awaits_is_not_logged_too() -> None:
    async def fail() -> None:
        raise ValueError("x")

    tasks = Tasks("owner")
    with structlog.testing.capture_logs() as logs:
        with pytest.raises(ValueError, match="x"):
            await tasks.start(fail(), "question", awaited=True)
        with pytest.raises(ValueError, match="x"):
            await tasks.start(fail(), "duty")
    assert [entry["task"] for entry in logs] == ["owner:duty"]


async def test_owned_tasks_report_failure_and_stop() -> None:
    failures: list[str] = []
    tasks = Tasks("owner", on_failure=lambda name, error: failures.append(f"{name} {error}"))
    ended = asyncio.Event()

    async def lasts() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fails() -> None:
        raise ValueError("broken")

    tasks.start(lasts(), "lasts")
    with pytest.raises(ValueError, match="broken"):
        await tasks.start(fails(), "fails")
    await tasks.stop()
    await tasks.stop()
    assert ended.is_set()
    assert failures == ["owner:fails broken"]
    with pytest.raises(RuntimeError):
        tasks.start(fails(), "late")


CANARIES = {
    "password": "correct-horse",
    "refresh_token": "abc",
    "Authorization": "Bearer abc",
    "api_secret": "abc",
    "signature": "abc",
}


def test_secrets_do_not_reach_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")
    token = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2ln"
    try:
        structlog.get_logger("t").info(
            "logged_in",
            nested={"deep": [CANARIES]},
            url="postgresql://me:hunter22@host/db",
            note=f"got {token}",
            **CANARIES,
        )
        structlog.get_logger("t").info("evil\n\x1b[31mname", name="a\r\nb", surprise="x")
    finally:
        structlog.reset_defaults()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "nested" in lines[0] and "abc" not in lines[0], "what is not listed is not written"
    assert json.loads(lines[1])["surprise"] == "[unlisted]"
    for secret in (*CANARIES.values(), token, "hunter22"):
        assert f'"{secret}"' not in lines[0]
    assert "hunter22" not in lines[0]
    assert token not in lines[0]
    assert json.loads(lines[1])["event"] == "evil\n\x1b[31mname"
