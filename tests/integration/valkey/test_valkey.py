"""A real Valkey that answers, is killed, is halted and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tbot.core.errors import ConfigurationError, ValkeyUnavailable
from tbot.core.valkey import Valkey
from tbot.core.valkey_settings import ValkeySettings

COUNT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


def settings(url: str, **more: Any) -> ValkeySettings:
    return ValkeySettings(url=url, **{"open_s": 0.05, "timeout_s": 1.0, **more})


@pytest.fixture
async def client(own_valkey: Any) -> AsyncIterator[Valkey]:
    valkey = Valkey(settings(own_valkey.url))
    yield valkey
    await valkey.stop()


async def test_a_script_counts_and_is_loaded_again_after_a_restart(
    own_valkey: Any, client: Valkey, eventually: Any
) -> None:
    count = client.script(COUNT)
    key = client.key("test", "count")
    assert key == "tbot:test:count"
    assert await client.call(lambda _: count([key], [2])) == 2
    assert await client.call(lambda _: count([key], [3])) == 5
    own_valkey.kill()
    own_valkey.start()

    async def counted() -> bool:
        try:
            return await client.call(lambda _: count([key], [1])) == 1
        except ValkeyUnavailable:
            return False

    await eventually(counted)


async def test_while_it_is_down_questions_are_refused_untried(
    own_valkey: Any, client: Valkey, eventually: Any
) -> None:
    assert await client.check() is None
    own_valkey.kill()
    for _ in range(3):
        with pytest.raises(ValkeyUnavailable, match="no answer"):
            await client.call(lambda connection: connection.get("x"))
    asked = 0

    async def never(_: Any) -> None:
        nonlocal asked
        asked += 1

    other = Valkey(settings(own_valkey.url, open_s=60.0, failures_max=1))
    assert await other.check() is not None
    assert not other.trusted
    with pytest.raises(ValkeyUnavailable) as refused:
        await other.call(never)
    assert asked == 0 and refused.value.retry_after_s > 1
    own_valkey.start()

    async def back() -> bool:
        return await client.check() is None

    await eventually(back)
    await other.stop()


async def test_one_that_takes_connections_and_says_nothing_is_given_up(
    own_valkey: Any, eventually: Any
) -> None:
    client = Valkey(settings(own_valkey.url))
    assert await client.check() is None
    own_valkey.halt()
    try:
        answers = await asyncio.gather(
            *(client.call(lambda connection: connection.get("x")) for _ in range(100)),
            return_exceptions=True,
        )
    finally:
        own_valkey.go_on()
    assert all(isinstance(answer, ValkeyUnavailable) for answer in answers)

    async def back() -> bool:
        return await client.check() is None

    await eventually(back)
    # Answers that came too late are not taken for those of later questions.
    await client.call(lambda connection: connection.set("mine", b"yes"))
    assert await client.call(lambda connection: connection.get("mine")) == b"yes"
    await client.stop()


async def test_more_questions_than_may_wait_do_without(valkey: str) -> None:
    client = Valkey(settings(valkey, connections_max=1, waiting_max=2))
    free = asyncio.Event()

    async def hold(_: Any) -> str:
        await free.wait()
        return "held"

    tasks = [asyncio.create_task(client.call(hold)) for _ in range(4)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = done
    with pytest.raises(ValkeyUnavailable, match="too many"):
        refused.result()
    free.set()
    others = await asyncio.gather(*(task for task in tasks if task is not refused))
    assert others == ["held"] * 3
    assert client.trusted
    await client.stop()


async def test_a_canceled_question_leaves_its_place_to_others(valkey: str) -> None:
    client = Valkey(settings(valkey, connections_max=1))
    begun = asyncio.Event()

    async def forever(connection: Any) -> None:
        begun.set()
        await connection.blpop(["never"], 0)

    task = asyncio.create_task(client.call(forever))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await client.check() is None
    await client.stop()


@pytest.mark.parametrize("url", ["http://127.0.0.1", "redis://127.0.0.1:port/0", "nothing"])
def test_a_url_that_is_none_stops_the_start_without_being_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Valkey(ValkeySettings(url=url))
    assert url not in str(error.value)


def test_without_a_url_there_is_no_valkey() -> None:
    with pytest.raises(ConfigurationError, match="not set"):
        Valkey(ValkeySettings())
