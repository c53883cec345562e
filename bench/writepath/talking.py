"""The same load over the stream: raw WebSocket connections with several messages under way each.

As cheap as `firing`: one `epoll`, bytes that are made once. Masks are zero, which RFC 6455 allows
and which leaves the payload as it is.
"""

from __future__ import annotations

import base64
import json
import re
import select
import socket
import time
from collections.abc import Callable

import msgspec
from writepath.firing import WARM_S, Shots, WrongAnswer

_ID = re.compile(rb'"id":(\d+),')
_TIMEOUT_S = 30.0


def frame(payload: bytes, binary: bool = False) -> bytes:
    """A client's frame."""
    first = b"\x82" if binary else b"\x81"
    size = len(payload)
    if size < 126:
        return first + bytes((0x80 | size,)) + b"\0\0\0\0" + payload
    length = b"\xfe" + size.to_bytes(2, "big")
    return first + length + b"\0\0\0\0" + payload


class _Talker:
    """One connection that is logged in."""

    def __init__(self, port: int, token: str, packed: bool) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.packed = packed
        self.rest = b""
        protocol = "tbot.v1.msgpack" if packed else "tbot.v1.json"
        key = base64.b64encode(b"0123456789abcdef").decode()
        self.socket.sendall(
            f"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.rest:
            self.rest += self.socket.recv(65536)
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise WrongAnswer(head.decode())
        self.say({"op": "auth", "token": token})
        while not any(b"authed" in answer for answer in self.answers()):
            self.rest += self.socket.recv(65536)
        self.socket.setblocking(False)

    def say(self, message: dict[str, object]) -> None:
        self.socket.sendall(frame(encoded(message, self.packed), self.packed))

    def answers(self) -> list[bytes]:
        """The whole messages that were received."""
        found = []
        data, at = self.rest, 0
        while len(data) - at >= 2:
            size, head = data[at + 1], 2
            if size == 126:
                size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
            elif size == 127:
                size, head = int.from_bytes(data[at + 2 : at + 10], "big"), 10
            if len(data) - at < head + size:
                break
            if data[at] & 0x0F == 8:
                raise WrongAnswer(f"closed: {data[at + head : at + head + size]!r}")
            found.append(data[at + head : at + head + size])
            at += head + size
        self.rest = data[at:]
        return found


def encoded(message: dict[str, object], packed: bool) -> bytes:
    """A message's bytes."""
    return msgspec.msgpack.encode(message) if packed else json.dumps(message).encode()


def talk(
    port: int,
    token: str,
    connections: int,
    depth: int,
    seconds: float,
    message: Callable[[int], bytes],
    first: int,
    each: int = 1,
    packed: bool = False,
) -> tuple[Shots, int]:
    """Keep `depth` messages under way on each connection for a while.

    Args:
        message: The frame of message number n, whose `id` is n.
        each: Orders in a message; what is counted are orders.

    Raises:
        WrongAnswer: Something was not placed, or no answer came.
    """
    poll = select.epoll()
    talkers = {}
    for _ in range(connections):
        talker = _Talker(port, token, packed)
        talkers[talker.socket.fileno()] = talker
        poll.register(talker.socket.fileno(), select.EPOLLIN)
    good = b"\xa6status\xcc\xc9" if packed else b'"status":201'
    clock = time.perf_counter
    number, orders, latencies = first, 0, []
    sent: dict[int, float] = {}
    from_s = clock() + WARM_S
    until_s = from_s + seconds
    counting, processor_s = False, 0.0
    try:
        for talker in talkers.values():
            for _ in range(depth):
                sent[number] = clock()
                talker.socket.send(message(number))
                number += 1
        while sent:
            ready = poll.poll(_TIMEOUT_S)
            if not ready:
                raise WrongAnswer("no answer in time")
            for descriptor, _ in ready:
                talker = talkers[descriptor]
                received = talker.socket.recv(262_144)
                if not received:
                    raise WrongAnswer("the server closed a connection")
                talker.rest += received
                out = []
                for answer in talker.answers():
                    if answer.count(good) != each:
                        raise WrongAnswer(answer[:2000].decode(errors="replace"))
                    if packed:
                        id_ = msgspec.msgpack.decode(answer)["id"]
                    else:
                        found = _ID.search(answer)
                        assert found is not None
                        id_ = int(found[1])
                    now_s = clock()
                    if counting:
                        orders += each
                        latencies.append(now_s - sent[id_])
                    del sent[id_]
                    if now_s < until_s:
                        sent[number] = now_s
                        out.append(message(number))
                        number += 1
                if out:
                    talker.socket.send(b"".join(out))
            if not counting and clock() >= from_s:
                counting = True
                from_s, processor_s = clock(), time.process_time()
        processor_s = time.process_time() - processor_s
        ended_s = clock()
    finally:
        poll.close()
        for talker in talkers.values():
            talker.socket.close()
    served = (number - first) * each
    return Shots(ended_s - from_s, orders, latencies, processor_s, served), number
