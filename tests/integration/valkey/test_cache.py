"""The cache: one question at a time, a bound on age, and a Valkey that may go at any moment."""

from __future__ import annotations

import asyncio
import time as clock
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tbot.core import cache as caching
from tbot.core.cache import Cache, Form, Shared
from tbot.core.valkey import Valkey
from tbot.core.valkey_settings import ValkeySettings

FORM: Form[str, int | None] = Form(
    key=lambda key: key,
    encode=lambda value: None if value is None else b"%d" % value,
    decode=int,
)


class Truth:
    """What is asked, and how often it was; `held` keeps questions waiting."""

    def __init__(self) -> None:
        self.value: int | None = 1
        self.asked = 0
        self.failing = False
        self.held: asyncio.Event | None = None

    async def ask(self, _key: str) -> int | None:
        self.asked += 1
        value = self.value
        if self.held is not None:
            await self.held.wait()
        if self.failing:
            raise OSError("the source is away")
        return value


class Time:
    """`boot_s` of the caches, turned by the test."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


type NewCache = Callable[..., Cache[str, int | None]]


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(caching, "boot_s", made)
    return made


@pytest.fixture
async def new_cache() -> AsyncIterator[NewCache]:
    """Makes what one process has."""
    async with AsyncExitStack() as stack:

        def make(
            truth: Truth,
            url: str | None = None,
            secret: bytes = b"s",
            timeout_s: float = 2.0,
            **more: Any,
        ) -> Any:
            shared = None
            if url is not None:
                valkey = Valkey(ValkeySettings(url=url, open_s=0.05, timeout_s=timeout_s))
                stack.push_async_callback(valkey.stop)
                shared = Shared(valkey, secret)
            options: dict[str, Any] = {"ttl_s": 60.0, "size_max": 100, "form": FORM, **more}
            options.setdefault("group", lambda key, _value: key.partition("/")[0])
            cache = Cache("test", truth.ask, shared=shared, **options)
            stack.push_async_callback(cache.stop)
            return cache

        yield make


def reads(outcome: str) -> float:
    return (
        REGISTRY.get_sample_value("tbot_cache_reads_total", {"cache": "test", "outcome": outcome})
        or 0
    )


async def told(cache: Any) -> None:
    """Wait until what a cache tells Valkey has got there."""
    await asyncio.gather(*cache._tasks._tasks, return_exceptions=True)


async def test_many_readers_are_one_question_and_then_none(new_cache: NewCache) -> None:
    truth = Truth()
    cache = new_cache(truth)
    before = {one: reads(one) for one in ("hit", "joined", "asked")}
    assert await asyncio.gather(*(cache.get("a") for _ in range(200))) == [1] * 200
    assert await asyncio.gather(*(cache.get("a") for _ in range(100))) == [1] * 100
    assert truth.asked == 1
    assert reads("asked") - before["asked"] == 1
    assert reads("joined") - before["joined"] == 199
    assert reads("hit") - before["hit"] == 100


async def test_a_busy_answer_is_renewed_by_one_question_while_everybody_has_it(
    new_cache: NewCache, time: Time
) -> None:
    truth = Truth()
    cache = new_cache(truth)
    await cache.get("a")
    time.now_s += 46  # of 60: three quarters are over
    truth.held, truth.value = asyncio.Event(), 2
    assert await asyncio.gather(*(cache.get("a") for _ in range(100))) == [1] * 100
    assert truth.asked == 2, "one renewal, and nobody waits for it"
    truth.held.set()
    await told(cache)
    assert await cache.get("a") == 2
    time.now_s += 16  # the first answer's time would be over
    assert await cache.get("a") == 2 and truth.asked == 2


async def test_a_renewal_that_fails_is_not_repeated_and_the_end_is_the_end(
    new_cache: NewCache, time: Time
) -> None:
    truth = Truth()
    cache = new_cache(truth)
    await cache.get("a")
    time.now_s += 50
    truth.failing = True
    for _ in range(10):
        assert await cache.get("a") == 1
        await told(cache)
    assert truth.asked == 2
    time.now_s += 10
    with pytest.raises(OSError, match="away"):
        await cache.get("a")
    truth.failing = False
    assert await cache.get("a") == 1


async def test_an_answer_is_as_old_as_its_question(new_cache: NewCache, time: Time) -> None:
    truth = Truth()
    cache = new_cache(truth)
    truth.held = asyncio.Event()
    reader = asyncio.create_task(cache.get("a"))
    while not truth.asked:
        await asyncio.sleep(0)
    time.now_s += 61  # the answer is slower than it is good for
    truth.held.set()
    assert await reader == 1
    truth.held, truth.value = None, 2
    assert await cache.get("a") == 2


async def test_a_change_forgets_its_group_and_answers_that_are_under_way(
    new_cache: NewCache,
) -> None:
    truth = Truth()
    cache = new_cache(truth)
    for key in ("ann/1", "ann/2", "bob/1"):
        await cache.get(key)
    truth.held = asyncio.Event()
    reader = asyncio.create_task(cache.get("ann/3"))
    while truth.asked < 4:
        await asyncio.sleep(0)
    truth.value = 2
    cache.forget("ann")
    late = asyncio.create_task(cache.get("ann/3"))
    truth.held.set()
    assert await reader == 1, "who asked before the change gets what was true then"
    assert await late == 2, "who asks after it does not"
    assert await cache.get("ann/3") == 2
    assert [await cache.get(key) for key in ("ann/1", "ann/2", "bob/1")] == [2, 2, 1]
    cache.forget()
    assert len(cache) == 0 and await cache.get("bob/1") == 2


async def test_it_is_bounded_and_the_oldest_goes_first(new_cache: NewCache) -> None:
    truth = Truth()
    cache = new_cache(truth, size_max=3)
    for number in range(10):
        await cache.get(f"u{number}/x")
    assert len(cache) == 3 and len(cache._members) == 3
    await cache.get("u9/x")
    assert truth.asked == 10
    await cache.get("u0/x")
    assert truth.asked == 11
    for number in range(20):
        cache.forget(f"u{number}")
    assert len(cache._changed) <= 4 and not cache._members


async def test_a_time_of_zero_believes_nothing(new_cache: NewCache, valkey: str) -> None:
    truth = Truth()
    cache = new_cache(truth, valkey, ttl_s=0)
    assert [await cache.get("a") for _ in range(3)] == [1, 1, 1]
    assert truth.asked == 3 and len(cache) == 0


async def test_processes_tell_each_other_what_they_found(new_cache: NewCache, valkey: str) -> None:
    truth = Truth()
    one, other = new_cache(truth, valkey), new_cache(truth, valkey)
    assert await one.get("told/1") == 1
    await told(one)
    assert await other.get("told/1") == 1
    assert truth.asked == 1
    truth.value = None
    assert await one.get("told/2") is None
    await told(one)
    assert await other.get("told/2") is None and truth.asked == 3, "what is not worth telling"


async def test_who_hears_of_a_change_believes_nothing_that_valkey_has_of_it(
    new_cache: NewCache, valkey: str
) -> None:
    truth = Truth()
    one, other = new_cache(truth, valkey), new_cache(truth, valkey)
    await one.get("ann/heard")
    await told(one)
    truth.value = 2
    other.forget("ann")  # `one` has missed the news: what it told stays in Valkey
    assert await other.get("ann/heard") == 2
    assert await one.get("ann/heard") == 1, "until its time is over"


async def test_what_valkey_has_lasts_no_longer_than_what_was_asked(
    new_cache: NewCache, valkey: str, time: Time
) -> None:
    truth = Truth()
    one = new_cache(truth, valkey)
    truth.held = asyncio.Event()
    reader = asyncio.create_task(one.get("late/1"))
    while not truth.asked:
        await asyncio.sleep(0)
    time.now_s += 50  # a slow answer: 10 s of its time are left
    truth.held.set()
    await reader
    await told(one)
    left_ms = await one._shared._valkey.call(lambda client: client.pttl("tbot:cache:1:test:late/1"))
    assert 0 < left_ms <= 10_000
    other = new_cache(truth, valkey)
    await other.get("late/1")
    assert other._kept["late/1"].until_s <= time.now_s + 10
    time.now_s += 11
    truth.held, truth.value = None, 2
    assert await other.get("late/1") in (1, 2) and other._kept["late/1"].until_s <= time.now_s + 60


@pytest.mark.parametrize("forged", ["rubbish", "moved", "changed", "other secret", "old"])
async def test_what_others_write_into_valkey_is_not_believed(
    new_cache: NewCache, valkey: str, forged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = Truth()
    one = new_cache(truth, valkey)
    key, place = f"forged/{forged}", f"tbot:cache:1:test:forged/{forged}"
    await one.get(key)
    await told(one)
    client = one._shared._valkey._client
    entry = await client.get(place)
    assert isinstance(entry, bytes)
    if forged == "rubbish":
        await client.set(place, b"x" * 100, px=50_000)
    elif forged == "moved":
        place = f"{place}/else"
        key = f"{key}/else"
        await client.set(place, entry, px=50_000)
    elif forged == "changed":
        await client.set(place, entry[:-1] + b"9", px=50_000)
    elif forged == "old":
        wall = clock.time()
        monkeypatch.setattr(clock, "time", lambda: wall + 121)
        await client.persist(place)
        await client.pexpire(place, 50_000)
    secret = b"another database" if forged == "other secret" else b"s"
    other = new_cache(truth, valkey, secret)
    truth.value = 5
    assert await other.get(key) == 5


async def test_a_valkey_that_is_killed_and_comes_back_changes_speed_only(
    new_cache: NewCache, own_valkey: Any, eventually: Any
) -> None:
    truth = Truth()
    one, other = (new_cache(truth, own_valkey.url, timeout_s=0.5) for _ in range(2))
    assert await one.get("a") == 1
    own_valkey.kill()
    answers = await asyncio.gather(*(one.get(f"k{n}") for n in range(50)), other.get("a"))
    assert answers == [1] * 51
    truth.value = 2
    one.forget()
    other.forget()
    assert [await one.get("a"), await other.get("a")] == [2, 2]
    own_valkey.start()

    numbers = iter(range(10_000))

    async def shares_again() -> bool:
        key = f"again/{next(numbers)}"
        await one.get(key)
        await told(one)
        asked = truth.asked
        third = new_cache(truth, own_valkey.url, timeout_s=0.5)
        assert await third.get(key) == 2
        return truth.asked == asked

    await eventually(shares_again)
    own_valkey.halt()  # takes connections, says nothing
    assert await asyncio.gather(*(one.get(f"halted{n}") for n in range(50))) == [2] * 50
    own_valkey.go_on()
