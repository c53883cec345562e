"""Scenarios of connecting, logging in, frames, trades, books and accounts: 1xx to 6xx."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import replace

import sdk_wire as wire
from sdk_core import Message, Plan, Session
from sdk_stones import (
    add,
    answering,
    bytes_at,
    chaos,
    closing,
    cut,
    damaged,
    dropped,
    early,
    held,
    meeting,
    once_at,
    raw,
    reset,
    stall,
    status,
    twice,
)

# 1xx: connecting

add(101, "Nothing goes wrong.", Plan(connections=(1, 1)))
add(102, "The connection is cut instead of an answer, twice.", Plan(meet=early(2, meeting(reset))))
add(103, "What answers is not HTTP.", Plan(meet=early(1, raw(b"SSH-2.0-nasty\r\n"))))
add(104, "The answer breaks off.", Plan(meet=early(1, raw(b"HTTP/1.1 101 Switch"))))
for _number, _status in ((105, 500), (106, 502), (107, 503), (108, 504), (109, 429)):
    add(_number, f"The handshake is answered {_status}.", Plan(meet=early(1, status(_status))))
add(
    110,
    "503 with Retry-After: 2.",
    Plan(meet=early(1, status(503, retry_after="2")), pause_s=2.0),
    4,
)
for _number, _status in ((111, 400), (112, 403), (113, 404)):
    add(
        _number,
        f"The handshake is answered {_status}: for good.",
        Plan(meet=status(_status), ended=(), connections=(1, 1)),
    )


async def _redirect(session: Session) -> bool:
    await session.line.answer(301, None, location="http://127.0.0.1:9/v1/stream")
    return True


add(114, "The handshake is redirected: not followed.", Plan(meet=_redirect, ended=()))


async def _wrong_accept(session: Session) -> bool:
    await session.line.upgrade(session.request, "tbot.v1.json", wrong=True)
    return True


add(115, "The accept key is another handshake's.", Plan(meet=early(1, _wrong_accept)))


async def _other_protocol(session: Session) -> bool:
    await session.line.upgrade(session.request, "chat")
    return True


add(116, "A subprotocol is chosen that was not offered.", Plan(meet=early(1, _other_protocol)))
add(117, "The connection is cut before hello, three times.", Plan(greet=early(3, meeting(cut))), 4)


async def _slow_hello(session: Session) -> bool:
    await asyncio.sleep(1.0)
    return False


add(118, "hello comes after a second: waited for.", Plan(greet=_slow_hello, connections=(1, 1)), 3)
add(119, "hello never comes (half open).", Plan(greet=early(1, stall)), 14)


async def _no_hello(session: Session) -> bool:
    await session.say({"op": "authed", "id": 0})
    return False


add(120, "The first message is not hello.", Plan(greet=early(1, _no_hello)))


async def _hello_in_bytes(session: Session) -> bool:
    for byte in wire.frame(wire.TEXT, wire.text(session.hello())):
        await session.line.raw(bytes([byte]))
        await asyncio.sleep(0)
    await session.close(1001)
    return True


add(121, "hello comes byte by byte.", Plan(greet=early(1, _hello_in_bytes)))

# 2xx: logging in


def token_refused(session: Session, message: Message) -> Message:
    """The answer to a token that does not count."""
    return {"op": "error", "id": message.get("id"), "code": "invalid_token", "msg": "no"}


async def _refuse_token(session: Session, message: Message) -> bool:
    await session.say(token_refused(session, message))
    await session.close(4001, "the token is not good")
    return True


add(
    201,
    "A good token is refused once: another is fetched.",
    Plan(answer=answering("authed", _refuse_token), fresh_token=True),
)
add(
    202,
    "Every token is refused: it gives up after a few.",
    Plan(answer=answering("authed", _refuse_token, 99), ended=(), connections=(1, 5)),
    4,
)


async def _busy_login(session: Session) -> bool:
    if session.run.logins > 2:
        return False
    await session.line.answer(503, {"code": "overloaded"}, retry_after="1")
    return True


add(203, "The login answers 503 twice.", Plan(login=_busy_login), 5)


async def _no_login(session: Session) -> bool:
    await session.line.answer(401, {"code": "invalid_credentials", "detail": "wrong"})
    return True


add(204, "The login is refused: for good.", Plan(login=_no_login, ended=(), connections=(0, 0)))
add(
    205,
    "Tokens count for six seconds: a fresh one is shown in time, inside the connection.",
    Plan(token_s=6.0, count=90, pace_s=0.1, connections=(1, 1)),
    12,
)
add(
    206,
    "The connection ends with 4103: a fresh token, then on.",
    Plan(tell=once_at(10, closing(4103)), channels=("trades", "account"), fresh_token=True),
)
add(207, "The answer to auth never comes.", Plan(answer=answering("authed", stall)), 14)

# 3xx: frames

HALF = wire.text({"op": "pong", "note": "x" * 300})
_GOOD = wire.frame(wire.TEXT, HALF[:100], fin=False) + wire.frame(0, HALF[100:])
_AMID = (
    wire.frame(wire.TEXT, HALF[:9], fin=False)
    + wire.frame(wire.PING, b"?")
    + wire.frame(0, HALF[9:])
)
for _number, _about, _data in (
    (301, "A message in two fragments.", _GOOD),
    (302, "A ping between two fragments.", _AMID),
    (303, "A pong that nobody asked for.", wire.frame(wire.PONG, b"hm")),
    (304, "A message of an op that is unknown.", wire.frame(wire.TEXT, b'{"op":"new","x":1}')),
    (305, "An error of a code that is unknown.", wire.frame(wire.TEXT, b'{"op":"error","code":"?"}')),
    (306, "A message for a channel that is not ours.",
     wire.frame(wire.TEXT, b'{"op":"delta","ch":99,"seq":1,"prev":0,"data":{}}')),
):  # fmt: skip
    add(_number, f"{_about} Harmless.", Plan(tell=bytes_at(10, _data), connections=(1, 1)))
for _number, _about, _data in (
    (311, "Text that is not UTF-8.", wire.frame(wire.TEXT, b'{"op":"\xff\xfe"}')),
    (312, "A reserved bit.", wire.frame(wire.TEXT, b"{}", reserved=4)),
    (313, "An opcode that does not exist.", wire.frame(3, b"{}")),
    (314, "A masked frame.", wire.frame(wire.TEXT, b'{"op":"pong"}', mask=True)),
    (315, "A frame that claims a terabyte.", b"\x81\x7f" + struct.pack("!Q", 1 << 40)),
    (316, "A close frame with half a code.", wire.frame(wire.CLOSE, b"\x03")),
    (317, "A ping of 200 bytes.", wire.frame(wire.PING, b"x" * 200)),
    (318, "A continuation of nothing.", wire.frame(0, b"{}")),
    (319, "JSON that breaks off.", wire.frame(wire.TEXT, b'{"op":"delta","ch":7,')),
    (320, "A list where an object should be.", wire.frame(wire.TEXT, b'[{"op":"pong"}]')),
    (321, "A message without op.", wire.frame(wire.TEXT, b'{"ch":7,"seq":9}')),
    (322, "JSON nested ten thousand deep.", wire.frame(wire.TEXT, b"[" * 10_000 + b"]" * 10_000)),
    (323, "A binary frame in a text protocol.", wire.frame(wire.BINARY, b"\x81\xa2op\x01")),
    (324, "A delta without its data.", wire.frame(wire.TEXT, b'{"op":"delta","ch":7,"seq":10,"prev":9}')),
):  # fmt: skip
    add(_number, f"{_about} The connection is given up.", Plan(tell=bytes_at(10, _data, True)))

# 4xx: trades

add(401, "A trade is dropped.", Plan(tell=once_at(10, dropped)))
add(402, "A trade comes after the next one.", Plan(tell=once_at(10, held)))
add(403, "A trade comes twice.", Plan(tell=once_at(10, twice), connections=(1, 1)))
add(404, "Dropped, repeated and reordered by lot.", Plan(tell=chaos(0.1), count=80), 6)
add(405, "The connection is cut; trades go on meanwhile.", Plan(tell=once_at(10, cut), away=5))
add(406, "Cut five times.", Plan(tell=once_at(6, cut, 5), away=2), 10)
add(
    407,
    "After a cut the place is not taken; the snapshot covers what was missed.",
    Plan(tell=once_at(10, cut), away=5, resume="refuse"),
)
add(
    408,
    "After a cut the place is not taken, and the snapshot does not reach back: a gap is told.",
    Plan(tell=once_at(10, cut), away=30, count=80, resume="refuse", gaps="some"),
)
add(
    409,
    "After a cut it is another run of the server.",
    Plan(tell=once_at(10, cut), away=5, new_epoch=True),
)


async def _slow_gap(session: Session, message: Message) -> bool:
    name, first = session.name_of(message), message["seq"]
    last = session.at[name] = session.run.published[name] = first + 4
    head = {"op": "gap", "ch": message["ch"], "seq": last, "from": first, "to": last}
    await session.say({**head, "why": "slow"})
    return True


add(410, "The server tells a gap of five.", Plan(tell=once_at(10, _slow_gap), gaps="some"))
add(
    411,
    "The place is said to be taken, and is not: what is missing is asked for, then a gap is told.",
    Plan(tell=once_at(10, cut), away=5, resume="lie", gaps="any"),
    8,
)


async def _old_snapshot(session: Session, message: Message) -> bool:
    old = {"op": "snap", "ch": message["ch"], "seq": 3}
    await session.say(old | session.run.truths["trades"].snapshot(3))
    return False


add(412, "An old snapshot comes again.", Plan(tell=once_at(10, _old_snapshot), connections=(1, 1)))
add(413, "A trade with a price that is no number.", Plan(tell=once_at(10, damaged(price="x"))))
add(
    414,
    "A snapshot without its trades.",
    Plan(tell=once_at(0, damaged(trades=None)), tolerant=True),
)
add(415, "Trades, a book, an account and best prices, cut three times.",
    Plan(("trades", "book", "account", "bbo"), tell=once_at(20, cut, 3), away=2), 6)  # fmt: skip
add(416, "All of it by lot, with cuts.",
    Plan(("trades", "book", "account", "bbo"), count=60, tell=chaos(0.04, 0.01), away=2), 20)  # fmt: skip

# 5xx: books

_BOOK = Plan(channels=("book",))
add(501, "A wrong checksum.", replace(_BOOK, tell=once_at(10, damaged(checksum=1))))
add(502, "The snapshot lacks a side.", replace(_BOOK, tell=once_at(0, damaged(bids=[]))))
add(503, "The first three snapshots are wrong.",
    replace(_BOOK, tell=once_at(0, damaged(checksum=1))), 4)  # fmt: skip
add(504, "A change is dropped.", replace(_BOOK, tell=once_at(10, dropped)))
add(505, "A change comes twice.", replace(_BOOK, tell=once_at(10, twice), connections=(1, 1)))
add(506, "A change comes after the next one.", replace(_BOOK, tell=once_at(10, held)))
add(507, "By lot.", replace(_BOOK, tell=chaos(0.1), count=80), 6)


async def _book_gap(session: Session, message: Message) -> bool:
    seq = message["seq"]
    gap = {"op": "gap", "ch": message["ch"], "seq": seq, "from": seq, "to": seq}
    await session.say({**gap, "why": "venue_disconnected"})
    session.sent += 1
    await session.begin("book")
    return True


add(508, "The venue was lost: gap, then a snapshot.",
    replace(_BOOK, tell=once_at(10, _book_gap), gaps="some"))  # fmt: skip
add(509, "Cut; changes go on meanwhile.", replace(_BOOK, tell=once_at(10, cut), away=7))


async def _silent_change(session: Session, message: Message) -> bool:
    data = {**message["data"], "bids": [], "asks": []}
    await session.say({**message, "data": data})
    return True


add(510, "A change arrives without its levels: only the checksum tells.",
    replace(_BOOK, tell=once_at(10, _silent_change)))  # fmt: skip


async def _unknown_level(session: Session, message: Message) -> bool:
    data = {**message["data"], "bids": [*message["data"]["bids"], ["1.23", "0"]]}
    await session.say({**message, "data": data})
    return True


add(511, "A level is deleted that never was: harmless.",
    replace(_BOOK, tell=once_at(10, _unknown_level), connections=(1, 1)))  # fmt: skip
add(512, "A level that is no pair.", replace(_BOOK, tell=once_at(10, damaged(bids=[["1"]]))))

# 6xx: accounts

_ACCOUNT = Plan(channels=("account",))
add(601, "Cut; entries go on meanwhile: resumed.", replace(_ACCOUNT, tell=once_at(10, cut), away=9))
add(602, "Cut five times.", replace(_ACCOUNT, tell=once_at(5, cut, 5), away=2), 10)
add(603, "An entry is dropped.", replace(_ACCOUNT, tell=once_at(10, dropped)))
add(604, "An entry comes twice.", replace(_ACCOUNT, tell=once_at(10, twice), connections=(1, 1)))
add(605, "An entry comes after the next one.", replace(_ACCOUNT, tell=once_at(10, held)))
add(606, "By lot, with cuts.", replace(_ACCOUNT, tell=chaos(0.1, 0.03), count=80), 12)
add(607, "4202, and the place is not taken: a snapshot, told as such.",
    replace(_ACCOUNT, tell=once_at(10, closing(4202)), resume="refuse"))  # fmt: skip
add(608, "Cut before the snapshot came.", replace(_ACCOUNT, tell=once_at(0, cut), tolerant=True))


async def _access_ended(session: Session, message: Message) -> bool:
    error = {"op": "error", "ch": message["ch"], "code": "access_ended", "msg": "not yours now"}
    await session.say({**error, "temporary": False})
    await session.stall()
    return True


add(609, "The account is not shared any more: whoever takes from it hears of it.",
    replace(_ACCOUNT, tell=once_at(10, _access_ended), ended=()))  # fmt: skip


async def _old_account(session: Session, message: Message) -> bool:
    old = {"op": "snap", "ch": message["ch"], "seq": 3}
    await session.say(old | session.run.truths["account"].snapshot(3))
    return False


add(610, "An old snapshot comes again.", replace(_ACCOUNT, tell=once_at(10, _old_account)))
add(611, "Another run of the server: the account goes on all the same.",
    replace(_ACCOUNT, tell=once_at(10, cut), new_epoch=True, away=4))  # fmt: skip
add(612, "The place is said to be taken, and is not: never a hole, at worst a new snapshot.",
    replace(_ACCOUNT, tell=once_at(10, cut), away=5, resume="lie", tolerant=True), 8)  # fmt: skip
