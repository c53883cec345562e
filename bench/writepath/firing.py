"""A load generator that costs little: raw sockets, one `epoll`, requests that are bytes already.

It shares its core with Postgres, so what it spends is missing there. It checks every answer's
status, counts, and times each request from its first byte out to its last byte in.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import quantiles

NUMBER = b"%012d"
"""How a request's number is written: always as long, so that Content-Length never changes."""
WARM_S = 0.5
_TIMEOUT_S = 30.0


@dataclass
class Shots:
    """What came of one stretch of firing."""

    seconds: float
    answered: int
    latencies_s: list[float] = field(repr=False)
    processor_s: float = 0.0
    """Processor time that the generator itself took."""
    served: int = 0
    """With those of the warm-up."""

    @property
    def per_s(self) -> float:
        return self.answered / self.seconds

    def ms(self, percent: int) -> float:
        """A percentile of the latency, in milliseconds."""
        if len(self.latencies_s) < 2:
            return float("nan")
        return quantiles(self.latencies_s, n=100, method="inclusive")[percent - 1] * 1000


class WrongAnswer(Exception):
    """A server did not answer as the benchmark demands: its figure would mean nothing."""


class _Connection:
    __slots__ = ("awaited", "received", "sent_s", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.received = b""
        self.awaited = -1
        self.sent_s = 0.0


def post(port: int, path: str, token: str, body: bytes, headers: str = "") -> bytes:
    """The bytes of one JSON POST."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def fire(
    port: int,
    connections: int,
    seconds: float,
    request: Callable[[int], bytes],
    first: int,
    status: bytes = b"201",
    warm_s: float = WARM_S,
    holds: tuple[bytes, int] | None = None,
) -> tuple[Shots, int]:
    """Keep each connection busy with one request at a time for a while.

    Args:
        request: The bytes of request number n.
        first: The first number to use.
        status: What every answer has to have.
        warm_s: Not counted, before the rest.
        holds: What every answer has to contain, and how often.

    Returns:
        The figures, and the first number that was not used.

    Raises:
        WrongAnswer: An answer had another status, or none came.
    """
    poll = select.epoll()
    peers = {}
    for _ in range(connections):
        peer = _Connection(port)
        peers[peer.socket.fileno()] = peer
        poll.register(peer.socket.fileno(), select.EPOLLIN)
    wanted = b"HTTP/1.1 " + status + b" "
    clock = time.perf_counter
    number = first
    latencies: list[float] = []
    begun_s = clock()
    from_s, until_s = begun_s + warm_s, begun_s + warm_s + seconds
    processor_s = 0.0
    counting = False
    in_flight = 0
    try:
        for peer in peers.values():
            peer.sent_s = clock()
            peer.socket.send(request(number))
            number += 1
            in_flight += 1
        while in_flight:
            ready = poll.poll(_TIMEOUT_S)
            if not ready:
                raise WrongAnswer("no answer in time")
            for descriptor, _ in ready:
                peer = peers[descriptor]
                received = peer.socket.recv(65536)
                if not received:
                    raise WrongAnswer("the server closed a connection")
                if peer.received:
                    received = peer.received + received
                if peer.awaited < 0:
                    end = received.find(b"\r\n\r\n")
                    if end < 0:
                        peer.received = received
                        continue
                    if not received.startswith(wanted):
                        raise WrongAnswer(received[:2000].decode(errors="replace"))
                    peer.awaited = end + 4 + _length(received, end)
                if len(received) < peer.awaited:
                    peer.received = received
                    continue
                if holds is not None and received.count(holds[0]) != holds[1]:
                    raise WrongAnswer(received[:2000].decode(errors="replace"))
                now_s = clock()
                if counting:
                    latencies.append(now_s - peer.sent_s)
                peer.received = b""
                peer.awaited = -1
                if now_s >= until_s:
                    in_flight -= 1
                    continue
                peer.sent_s = now_s
                peer.socket.send(request(number))
                number += 1
            if not counting and clock() >= from_s:
                counting = True
                from_s, processor_s = clock(), time.process_time()
        processor_s = time.process_time() - processor_s
        ended_s = clock()
    finally:
        poll.close()
        for peer in peers.values():
            peer.socket.close()
    return Shots(ended_s - from_s, len(latencies), latencies, processor_s, number - first), number


def _length(received: bytes, end: int) -> int:
    head = received[:end].lower()
    at = head.find(b"content-length:")
    if at < 0:
        raise WrongAnswer("an answer without Content-Length")
    stop = head.find(b"\r\n", at)
    return int(head[at + 15 : stop if stop >= 0 else end])
