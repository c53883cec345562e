"""Caches of what is read on every request: in this process, and beyond it in Valkey.

Entry points: `Cache` (what is believed), `Shared` (what processes tell each other through Valkey).

What every cache here keeps to:

1. An answer is believed for at most `ttl_s`, counted from *before* its question was asked, wherever
   it was kept meanwhile. That is the bound on how stale anything can be, whatever else fails.
2. Concurrent questions about one thing are one question; a busy answer is renewed by one question
   shortly before it ends, while everybody still has it. So the end of an answer is no stampede.
3. Whoever hears of a change (from the journal's bus) calls `forget`: from then on this process
   believes neither what it kept, nor answers whose questions were under way, nor, for `ttl_s`, what
   Valkey has. So correctness never depends on Valkey having been told.
4. A cache has at most `size_max` entries; the oldest answers go first.
5. Valkey away, slow, or full of somebody's rubbish is a question to the source, no error.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import struct
import time
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from tbot.core.clock import boot_s
from tbot.core.errors import ValkeyUnavailable
from tbot.core.tasks import Tasks
from tbot.core.valkey import Valkey

_log = structlog.get_logger(__name__)


class Reads:
    """Reads of one cache with one outcome.

    Counted in a plain number of the event loop's thread: most requests read several caches, and a
    counter of `prometheus_client` takes its lock each time.
    """

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def inc(self) -> None:
        """Count one more."""
        self.count += 1


class _AllReads(Collector):
    """Those of all caches, for when Prometheus asks."""

    def __init__(self) -> None:
        self._reads: dict[tuple[str, str], Reads] = {}

    def labels(self, cache: str, outcome: str) -> Reads:
        """The ones to be counted under these labels."""
        return self._reads.setdefault((cache, outcome), Reads())

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        told = CounterMetricFamily(
            "tbot_cache_reads",
            "Reads of caches: `hit` in memory, `joined` another reader's question, `shared` from "
            "Valkey, `asked` the source.",
            labels=["cache", "outcome"],
        )
        for labels, reads in list(self._reads.items()):
            told.add_metric(labels, reads.count)
        yield told


READS: Final = _AllReads()
REGISTRY.register(READS)
_ENTRIES: Final = Gauge("tbot_cache_entries", "Answers in memory.", ["cache"])
_FORGOTTEN: Final = Counter(
    "tbot_cache_forgotten", "Times that something was forgotten because it changed.", ["cache"]
)
_RENEW_AT: Final = 0.75
"""Part of its time after which an answer that is still asked for is renewed."""
_FORM: Final = "1"
"""Part of every key: another number when what is in Valkey changes its form."""
_HEAD: Final = struct.Struct(">16sq")
_CLOCKS_APART_MS: Final = 60_000
"""How far the clocks of machines may differ."""


class Shared:
    """What processes tell each other through Valkey, signed so that nobody else can.

    Valkey's own clock ends an entry. A signature over the place, the content and the time of the
    question keeps those who can write to Valkey from making a session live, or an entry last.

    Args:
        secret: From the database; whoever has another database believes nothing of ours.
    """

    def __init__(self, valkey: Valkey, secret: bytes) -> None:
        self._valkey = valkey
        self._secret = secret

    @property
    def trusted(self) -> bool:
        """Whether it is worth asking now."""
        return self._valkey.trusted

    async def get(self, cache: str, key: str, ttl_s: float) -> tuple[bytes, float] | None:
        """An answer and how long (seconds) it may be believed; None where there is none."""
        name = self._name(cache, key)

        async def ask(client: Any) -> list[Any]:
            answers: list[Any] = (
                await client.pipeline(transaction=False).get(name).pttl(name).execute()
            )
            return answers

        try:
            found, left_ms = await self._valkey.call(ask)
        except ValkeyUnavailable:
            return None
        if not isinstance(found, bytes) or len(found) < _HEAD.size or left_ms <= 0:
            return None
        seal, asked_ms = _HEAD.unpack_from(found)
        content = found[_HEAD.size :]
        age_ms = time.time() * 1000 - asked_ms
        in_time = -_CLOCKS_APART_MS <= age_ms <= ttl_s * 1000 + _CLOCKS_APART_MS
        if not in_time or not hmac.compare_digest(seal, self._seal(name, asked_ms, content)):
            _log.warning("shared_cache_entry_refused", cache=cache)
            return None
        return content, min(left_ms / 1000, ttl_s)

    async def put(self, cache: str, key: str, content: bytes, until_s: float) -> None:
        """Tell the others.

        Args:
            until_s: When it ends, on this machine's `boot_s`.
        """
        name = self._name(cache, key)
        asked_ms = int(time.time() * 1000)
        # Less what the way there may take, so that it ends in time also when that was slow.
        left_ms = int((until_s - boot_s() - self._valkey.bound_s) * 1000)
        if left_ms <= 0:
            return
        entry = _HEAD.pack(self._seal(name, asked_ms, content), asked_ms) + content
        with suppress(ValkeyUnavailable):  # then the others ask for themselves
            await self._valkey.call(lambda client: client.set(name, entry, px=left_ms))

    def _name(self, cache: str, key: str) -> str:
        return self._valkey.key("cache", _FORM, cache, key)

    def _seal(self, name: str, asked_ms: int, content: bytes) -> bytes:
        signed = b"%b\0%d\0%b" % (name.encode(), asked_ms, content)
        return hmac.digest(self._secret, signed, hashlib.sha256)[:16]


@dataclass(frozen=True, slots=True)
class Form[K, V]:
    """How a cache's entries look in Valkey.

    Attributes:
        key: Its name there; no secret, and nothing that could be one.
        encode: None for an answer that is not worth telling.
        decode: Raises any `ValueError` for what this version cannot read.
    """

    key: Callable[[K], str]
    encode: Callable[[V], bytes | None]
    decode: Callable[[bytes], V]


@dataclass(slots=True)
class _Entry[V]:
    value: V
    until_s: float
    renew_s: float
    group: Hashable


class Cache[K: Hashable, V]:
    """A bounded cache in front of a question; see the module's text. Belongs to one event loop.

    Args:
        name: In metrics, and in Valkey.
        ask: The question to the source of truth. What it raises, every reader gets.
        ttl_s: How long an answer is believed; 0 believes nothing.
        size_max: Most answers in memory.
        shared: With `form`, tells other processes.
        group: What an answer belongs to, as changes name it (a user, an account); by default
            nothing, so that every change forgets it.
    """

    def __init__(
        self,
        name: str,
        ask: Callable[[K], Awaitable[V]],
        *,
        ttl_s: float,
        size_max: int,
        shared: Shared | None = None,
        form: Form[K, V] | None = None,
        group: Callable[[K, V], Hashable] | None = None,
    ) -> None:
        self._name = name
        self._ask = ask
        self._ttl_s = ttl_s
        self._size_max = size_max
        self._shared = shared if form is not None and ttl_s > 0 else None
        self._form = form
        self._group = group
        self._tasks = Tasks(f"cache-{name}")
        self._kept: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._members: defaultdict[Hashable, set[K]] = defaultdict(set)
        self._asking: dict[K, asyncio.Task[V]] = {}
        self._changed: OrderedDict[Hashable, float] = OrderedDict()
        self._all_changed_s = float("-inf")
        reads = {one: READS.labels(name, one) for one in ("hit", "joined", "shared", "asked")}
        self._hit, self._joined = reads["hit"], reads["joined"]
        self._from_shared, self._asked = reads["shared"], reads["asked"]
        self._entries = _ENTRIES.labels(name)
        self._forgotten = _FORGOTTEN.labels(name)

    def __len__(self) -> int:
        return len(self._kept)

    def peek(self, key: K) -> V | None:
        """The answer if it is in memory and not about to be renewed; None says to `get` it."""
        entry = self._kept.get(key)
        if entry is None or boot_s() >= entry.renew_s:
            return None
        self._hit.inc()
        return entry.value

    async def get(self, key: K) -> V:
        """The answer, as of at most `ttl_s` ago.

        Raises:
            Exception: Whatever `ask` raises, when nothing is believed at the moment.
        """
        entry = self._kept.get(key)
        if entry is not None:
            now_s = boot_s()
            if now_s < entry.until_s:
                self._hit.inc()
                if now_s >= entry.renew_s:
                    entry.renew_s = entry.until_s  # one attempt: the end is near anyway
                    if key not in self._asking:
                        self._begin(key, renewing=True)
                return entry.value
        task = self._asking.get(key)
        if task is None:
            task = self._begin(key)
        else:
            self._joined.inc()
        # Shielded: a reader that goes away does not take the answer from the others.
        return await asyncio.shield(task)

    def forget(self, *groups: Hashable) -> None:
        """Something changed: believe nothing of these groups any more, or (none given) of any.

        Questions under way are answered to those who wait already, but not remembered.
        """
        self._forgotten.inc()
        self._asking.clear()
        if not groups:
            self._all_changed_s = boot_s()
            self._changed.clear()
            self._members.clear()
            self._kept.clear()
            self._entries.set(0)
            return
        # What belongs to nobody (an unknown key, say) may belong to anybody now.
        for group in (*groups, None):
            self._note_change(group)
            for key in self._members.pop(group, ()):
                del self._kept[key]
        self._entries.set(len(self._kept))

    async def stop(self) -> None:
        """End the questions under way; safe to call twice."""
        await self._tasks.stop()

    def _begin(self, key: K, *, renewing: bool = False) -> asyncio.Task[V]:
        task = self._tasks.start(self._find(key, renewing), name="ask", awaited=True)
        self._asking[key] = task
        task.add_done_callback(lambda done: self._answered(key, done))
        return task

    def _answered(self, key: K, task: asyncio.Task[V]) -> None:
        if self._asking.get(key) is task:
            del self._asking[key]
        if not task.cancelled():
            task.exception()  # nobody may wait for a renewal; the next reader asks again

    async def _find(self, key: K, renewing: bool) -> V:
        mine = asyncio.current_task()
        if self._shared is not None and self._shared.trusted:
            found = await self._look_up(self._shared, key, renewing)
            if found is not None:
                self._from_shared.inc()
                if self._asking.get(key) is mine:
                    self._keep(key, found)
                return found.value
        # From before the question, so that the bound holds for slow answers too.
        until_s = boot_s() + self._ttl_s
        self._asked.inc()
        value = await self._ask(key)
        if self._asking.get(key) is mine and self._ttl_s > 0:
            self._keep(key, self._entry(key, value, until_s))
            self._tell(key, value, until_s)
        return value

    async def _look_up(self, shared: Shared, key: K, renewing: bool) -> _Entry[V] | None:
        """What another process found out, if it may be believed."""
        assert self._form is not None
        before_s = boot_s()
        found = await shared.get(self._name, self._form.key(key), self._ttl_s)
        if found is None:
            return None
        content, left_s = found
        if renewing and left_s < self._ttl_s * _RENEW_AT:
            return None  # it is what we have already
        try:
            value = self._form.decode(content)
        except ValueError:
            return None
        entry = self._entry(key, value, before_s + left_s)
        changed_s = max(self._all_changed_s, self._changed.get(entry.group, float("-inf")))
        return None if boot_s() < changed_s + self._ttl_s else entry

    def _tell(self, key: K, value: V, until_s: float) -> None:
        if self._shared is None or self._form is None or not self._shared.trusted:
            return
        content = self._form.encode(value)
        if content is not None:
            name = self._form.key(key)
            self._tasks.start(self._shared.put(self._name, name, content, until_s), name="tell")

    def _entry(self, key: K, value: V, until_s: float) -> _Entry[V]:
        group = None if self._group is None else self._group(key, value)
        renew_s = until_s - self._ttl_s * (1 - _RENEW_AT)
        return _Entry(value, until_s, renew_s, group)

    def _keep(self, key: K, entry: _Entry[V]) -> None:
        self._drop(key)
        self._kept[key] = entry
        self._members[entry.group].add(key)
        while len(self._kept) > self._size_max:
            self._drop(next(iter(self._kept)))
        self._entries.set(len(self._kept))

    def _drop(self, key: K) -> None:
        entry = self._kept.pop(key, None)
        if entry is not None:
            members = self._members[entry.group]
            members.discard(key)
            if not members:
                del self._members[entry.group]

    def _note_change(self, group: Hashable) -> None:
        now_s = boot_s()
        self._changed.pop(group, None)
        self._changed[group] = now_s
        while self._changed and next(iter(self._changed.values())) < now_s - self._ttl_s:
            self._changed.popitem(last=False)
        if len(self._changed) > self._size_max:
            self._changed.clear()
            self._all_changed_s = now_s
