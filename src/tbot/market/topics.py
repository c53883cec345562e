"""What clients subscribe to: numbered frames in a bounded ring. Pure: no I/O, no clock, no task.

Entry points: `Frame`, `Run` and `Batch` (frames joined for writing), `Topic` and its kinds
`LatestTopic`, `TradesTopic` and, in `tbot.market.booktopic`, `BookTopic`.

Invariants:

1. A frame is encoded once; every subscriber of its topic gets the same bytes. Frames that follow
   the same number are joined once for all who are due them.
2. Sequence numbers of a topic only grow. In contiguous topics (trades, book) every number is the
   number of exactly one frame; in latest-value topics it counts updates, so that a jump tells how
   many were conflated.
3. A ring holds at most `ring_bytes_max` (and always its newest frame). What a reader behind the
   ring is owed is decided by the topic's `slow` policy, never by buffering for that reader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any

import msgspec

encode = msgspec.json.Encoder().encode


class Slow(StrEnum):
    """What happens to a subscription whose reader fell out of the topic's ring."""

    LATEST = "latest"
    """Everything but the newest frame is skipped."""
    SNAPSHOT = "snapshot"
    """Missed deltas are dropped; a fresh snapshot follows."""
    GAP = "gap"
    """A `gap` names the missed numbers; the ring's newest half follows."""
    CLOSE = "close"
    """Nothing is ever skipped: the connection is closed, and resumes."""


class Frame:
    """One encoded message of a topic, shared by all its readers."""

    __slots__ = ("_framed", "_text", "at", "payload", "seq")

    def __init__(self, seq: int, payload: bytes) -> None:
        self.seq = seq
        self.payload = payload
        self.at = 0.0
        """When it was published, by the loop's clock; 0.0 where nobody measures."""
        self._text: str | None = None
        self._framed: bytes | None = None

    @property
    def text(self) -> str:
        """The payload as text; decoded once."""
        if self._text is None:
            self._text = self.payload.decode()
        return self._text

    @property
    def framed(self) -> bytes:
        """The payload as an unfragmented, unmasked WebSocket text frame (RFC 6455, 5.2)."""
        if self._framed is None:
            size_bytes = len(self.payload)
            if size_bytes < 126:
                header = bytes((0x81, size_bytes))
            elif size_bytes < 1 << 16:
                header = b"\x81\x7e" + size_bytes.to_bytes(2, "big")
            else:
                header = b"\x81\x7f" + size_bytes.to_bytes(8, "big")
            self._framed = header + self.payload
        return self._framed


def control(message: dict[str, Any]) -> Frame:
    """A frame for one client: an answer, an error, a notice."""
    return Frame(0, encode(message))


class Run:
    """Frames in a row, and their bytes as they go over the wire.

    Args:
        topic: Whose frames they are; None for control and private ones.
    """

    __slots__ = ("count", "data", "frames", "last", "oldest_at", "topic")

    def __init__(self, frames: Sequence[Frame], topic: Topic | None = None) -> None:
        self.topic = topic
        self.frames = frames
        self.count = len(frames)
        self.last = frames[-1].seq
        self.oldest_at = frames[0].at
        if len(frames) == 1:
            self.data = frames[0].framed
        else:
            self.data = b"".join([frame.framed for frame in frames])


class Batch:
    """What is written to a connection at once; shared by all who are due the same."""

    __slots__ = ("count", "data", "runs")

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.data = runs[0].data if len(runs) == 1 else b"".join([run.data for run in runs])
        self.count = sum([run.count for run in runs])

    def __iter__(self) -> Iterator[Frame]:
        for run in self.runs:
            yield from run.frames

    def cut(self, bytes_max: int) -> list[Batch]:
        """The same in batches of at most so many bytes; a larger frame goes alone."""
        if len(self.data) <= bytes_max:
            return [self]
        batches: list[Batch] = []
        runs: list[Run] = []
        size_bytes = 0
        for whole in self.runs:
            start = 0
            for end, frame in enumerate(whole.frames):
                if size_bytes and size_bytes + len(frame.framed) > bytes_max:
                    if end > start:
                        runs.append(Run(whole.frames[start:end], whole.topic))
                    batches.append(Batch(runs))
                    runs, size_bytes, start = [], 0, end
                size_bytes += len(frame.framed)
            runs.append(Run(whole.frames[start:], whole.topic))
        batches.append(Batch(runs))
        return batches


class Topic:
    """A channel with its parameters: what one server-wide channel number stands for.

    Args:
        number: The number that frames carry as `ch`.
        channel: Name of the channel.
        parameters: What a subscriber asked for, echoed in the answer.
        slow: What readers get who fall out of the ring.
        ring_bytes_max: Bound of the ring.
    """

    __slots__ = (
        "channel",
        "frames",
        "head",
        "interval_ms",
        "lost_through",
        "number",
        "parameters",
        "pending",
        "readers",
        "ring_bytes_max",
        "runs",
        "seq",
        "size_bytes",
        "slow",
        "snapshot_frame",
    )

    def __init__(
        self,
        number: int,
        channel: str,
        parameters: dict[str, Any],
        slow: Slow,
        ring_bytes_max: int,
    ) -> None:
        self.number = number
        self.channel = channel
        self.parameters = parameters
        self.slow = slow
        self.ring_bytes_max = ring_bytes_max
        self.interval_ms: int = parameters.get("interval_ms", 0)
        self.seq = 0
        self.head = 0
        """Number of the newest frame; what is conflated at the moment is beyond it."""
        self.frames: deque[Frame] = deque()
        self.size_bytes = 0
        self.lost_through = 0
        """The number of the newest frame that left the ring."""
        self.pending = False
        """Whether something waits for the end of the conflation interval."""
        self.snapshot_frame: Frame | None = None
        self.readers = 0
        """Subscriptions."""
        self.runs: dict[int, Run] = {}
        """The frames after a number, joined: until the next frame."""

    def push(self, op: str, **fields: Any) -> Frame:
        """Encode a message under the current sequence number and keep it in the ring."""
        frame = Frame(self.seq, encode({"op": op, "ch": self.number, "seq": self.seq, **fields}))
        self.frames.append(frame)
        self.head = frame.seq
        if self.runs:
            self.runs.clear()
        self.size_bytes += len(frame.payload)
        while self.size_bytes > self.ring_bytes_max and len(self.frames) > 1:
            lost = self.frames.popleft()
            self.size_bytes -= len(lost.payload)
            self.lost_through = lost.seq
        return frame

    def holds_after(self, seq: int) -> bool:
        """Whether every frame after `seq` is still in the ring (and `seq` is not in the future)."""
        return self.lost_through <= seq <= self.seq

    def after(self, seq: int) -> list[Frame]:
        """The ring's frames that are newer than `seq`, oldest first."""
        newer: list[Frame] = []
        for frame in reversed(self.frames):
            if frame.seq <= seq:
                break
            newer.append(frame)
        newer.reverse()
        return newer

    def run_after(self, seq: int) -> Run:
        """The ring's frames that are newer than `seq`, at least one, joined once for all."""
        run = self.runs.get(seq)
        if run is None:
            run = self.runs[seq] = Run(self.after(seq), self)
        return run

    def newest_half(self) -> list[Frame]:
        """The newest frames that fill at most half of the ring's bound, at least one if any."""
        kept: list[Frame] = []
        size_bytes = 0
        for frame in reversed(self.frames):
            size_bytes += len(frame.payload)
            if kept and size_bytes > self.ring_bytes_max // 2:
                break
            kept.append(frame)
        kept.reverse()
        return kept

    def snapshot(self) -> Frame | None:
        """The state after `seq` as one frame, encoded once per `seq`; None while there is none."""
        found = self.snapshot_frame
        if found is not None and found.seq == self.seq:
            return found
        data = self.state()
        if data is None:
            return None
        message = {"op": "snap", "ch": self.number, "seq": self.seq, "data": data}
        self.snapshot_frame = Frame(self.seq, encode(message))
        return self.snapshot_frame

    @property
    def begun(self) -> bool:
        """Whether there is a state to tell a new subscriber."""
        return True

    def state(self) -> Any:
        """What a new subscriber is told; None while there is nothing to tell."""
        raise NotImplementedError

    def flush(self) -> bool:
        """Publish what was conflated since the last call; False when there was nothing."""
        raise NotImplementedError

    def gap(self, why: str, **fields: Any) -> None:
        """Tell everybody that something was missed upstream; takes one number of its own."""
        self.seq += 1
        self.push("gap", **{"from": self.seq, "to": self.seq, "why": why}, **fields)


class LatestTopic(Topic):
    """A value of which only the newest matters: best prices, ticker."""

    __slots__ = ("latest",)

    def __init__(
        self, number: int, channel: str, parameters: dict[str, Any], slow: Slow, ring_bytes_max: int
    ) -> None:
        super().__init__(number, channel, parameters, slow, ring_bytes_max)
        self.latest: dict[str, Any] | None = None

    def update(self, data: dict[str, Any]) -> None:
        """Take a new value; published at once, or by `flush` when there is an interval."""
        self.seq += 1
        self.latest = data
        self.pending = True
        if self.interval_ms == 0:
            self.flush()

    @property
    def begun(self) -> bool:
        """Whether there has been a value."""
        return self.latest is not None

    def flush(self) -> bool:
        """Publish the newest value, if it is new."""
        if not self.pending:
            return False
        self.pending = False
        self.push("snap", data=self.latest)
        return True

    def state(self) -> Any:
        """The newest value."""
        return self.latest


class TradesTopic(Topic):
    """Every trade, one frame each, numbers without gaps."""

    __slots__ = ("recent",)

    def __init__(
        self,
        number: int,
        channel: str,
        parameters: dict[str, Any],
        slow: Slow,
        ring_bytes_max: int,
        recent_max: int = 20,
    ) -> None:
        super().__init__(number, channel, parameters, slow, ring_bytes_max)
        self.recent: deque[dict[str, Any]] = deque(maxlen=recent_max)
        """The newest trades, for the snapshot; fewer than ever happened."""

    def update(self, data: dict[str, Any]) -> None:
        """Publish one trade."""
        self.seq += 1
        self.recent.append(data)
        self.push("delta", prev=self.seq - 1, data=data)

    def flush(self) -> bool:
        """Nothing: trades do not wait."""
        return False

    def state(self) -> Any:
        """The newest trades, oldest first."""
        return {"trades": list(self.recent)}
