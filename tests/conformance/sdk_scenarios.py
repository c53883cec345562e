"""The numbered scenarios: what the nasty server does, and what a client has to make of it.

1xx connecting, 2xx logging in, 3xx frames, 4xx trades, 5xx books, 6xx accounts, 7xx close codes,
8xx draining and limits, 9xx orders, 10xx silence, 11xx server-sent events. Numbers stay what they
are; new scenarios get new ones.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, replace
from typing import Final

import sdk_wire as wire
from sdk_core import Act, Meet, Message, Plan, Session

GOOD_CODE: Final = 4201


@dataclass(frozen=True, slots=True)
class Scenario:
    """One of the list.

    Attributes:
        seconds: About how long it takes a client that is right.
    """

    number: int
    about: str
    plan: Plan
    seconds: float = 2.0


SCENARIOS: Final[dict[int, Scenario]] = {}


def add(number: int, about: str, plan: Plan, seconds: float = 2.0) -> None:
    """Put a scenario on the list."""
    assert number not in SCENARIOS, number
    SCENARIOS[number] = Scenario(number, about, plan, seconds)


# What may happen to a connection: building stones


def early(times: int, act: Meet) -> Meet:
    """On the first connections only."""

    async def meet(session: Session) -> bool:
        if session.nth > times:
            return False
        session.run.beaten += 1
        return await act(session)

    return meet


def once_at(place: int, act: Act, times: int = 1) -> Act:
    """At one message of the first connections only."""

    async def tell(session: Session, message: Message) -> bool:
        if session.nth > times or session.sent != place:
            return False
        session.run.beaten += 1
        return await act(session, message)

    return tell


def answering(op: str, act: Act, times: int = 1) -> Act:
    """At the first answers of a kind, over all connections."""

    async def answer(session: Session, message: Message) -> bool:
        if message["op"] != op or session.run.beaten >= times:
            return False
        session.run.beaten += 1
        return await act(session, message)

    return answer


def status(code: int, **headers: str) -> Meet:
    """An HTTP answer in place of the handshake."""

    async def meet(session: Session) -> bool:
        problem = {"type": "about:blank", "status": code, "code": "nasty", "detail": "no"}
        await session.line.answer(code, problem, connection="close", **headers)
        return True

    return meet


def raw(data: bytes) -> Meet:
    """Bytes in place of what should come; then the end."""

    async def meet(session: Session) -> bool:
        await session.line.raw(data)
        return True

    return meet


def bytes_at(place: int, data: bytes, then_close: bool = False) -> Act:
    """Bytes before a message of the first connection."""

    async def act(session: Session, message: Message) -> bool:
        await session.line.raw(data)
        if then_close:
            await session.stall()
        return False

    return once_at(place, act)


async def cut(session: Session, message: Message | None = None) -> bool:
    """Cut the connection."""
    await session.cut()
    return True


async def reset(session: Session, message: Message | None = None) -> bool:
    """Cut the connection, with what is on its way."""
    await session.reset()
    return True


async def stall(session: Session, message: Message | None = None) -> bool:
    """Say nothing any more and hear nothing."""
    await session.stall()
    return True


async def dropped(session: Session, message: Message) -> bool:
    """The message never comes."""
    return True


async def twice(session: Session, message: Message) -> bool:
    """The message comes twice."""
    await session.say(message)
    return False


async def held(session: Session, message: Message) -> bool:
    """The message comes after the next one."""
    after = session.message(session.name_of(message), message["seq"] + 1)
    await session.say(after)
    return False


def closing(code: int | None) -> Act:
    """Close with a code."""

    async def act(session: Session, message: Message) -> bool:
        await session.close(code, "nasty")
        return True

    return act


def meeting(act: Act) -> Meet:
    """What can be done to a message, done to a connection."""

    async def meet(session: Session) -> bool:
        return await act(session, {})

    return meet


def damaged(**data: object) -> Act:
    """The message comes with other members in its data; None leaves one out."""

    async def act(session: Session, message: Message) -> bool:
        changed = {**message["data"], **data}
        told = {name: value for name, value in changed.items() if value is not None}
        await session.say({**message, "data": told})
        return True

    return act


def chaos(share: float, cuts: float = 0.0) -> Act:
    """Messages are dropped, repeated, held back and connections cut, as the seed has it."""

    async def tell(session: Session, message: Message) -> bool:
        rng = session.run.rng
        if session.run.beaten >= 12 or message["seq"] >= session.plan.count - 1:
            return False  # it ends well
        draw = rng.random()
        if draw < cuts and message["op"] != "snap":
            session.run.beaten += 1
            await session.reset()
        if draw > share or message["op"] == "snap":
            return False
        session.run.beaten += 1
        return await rng.choice((dropped, twice, held))(session, message)

    return tell


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

# 7xx: close codes; the number is 70000 + the code

FOR_GOOD: Final = (1007, 1009, *range(4000, 4004), 4050, 4099)
COME_BACK: Final = (
    1000, 1001, 1002, 1003, 1008, 1010, 1011, 1012, 1013, 1014, 3000, 3999,
    *range(4101, 4107), 4100, 4150, 4199, 4201, 4202, 4250, 4299, 4300, 4999,
)  # fmt: skip
for _code in FOR_GOOD:
    _plan = Plan(tell=once_at(5, closing(_code), 99), ended=(_code,), connections=(1, 1))
    add(70_000 + _code, f"Closed with {_code}: for good.", _plan)
for _code in COME_BACK:
    _plan = Plan(tell=once_at(5, closing(_code)), connections=(2, 2), away=2)
    add(70_000 + _code, f"Closed with {_code}: back, and on.", _plan)
add(71_005, "Closed without a code: back, and on.",
    Plan(tell=once_at(5, closing(None)), connections=(2, 2)))  # fmt: skip
add(71_006, "Cut without a close: back, and on.", Plan(tell=once_at(5, reset), connections=(2, 2)))

# 8xx: draining and limits


async def _drain(session: Session, message: Message) -> bool:
    await session.say({"op": "drain", "reconnect_after_ms": 700})
    await session.close(4201, "the server drains")
    return True


async def _drain_and_cut(session: Session, message: Message) -> bool:
    await session.say({"op": "drain", "reconnect_after_ms": 700})
    await session.cut()
    return True


async def _drain_and_stay(session: Session, message: Message) -> bool:
    await session.say({"op": "drain", "reconnect_after_ms": 100})
    await session.stall()
    return True


add(801, "Drained: back after the delay that was told.",
    Plan(tell=once_at(10, _drain), connections=(2, 2), pause_s=0.7))  # fmt: skip
add(802, "Drained, then cut: the same.",
    Plan(tell=once_at(10, _drain_and_cut), connections=(2, 2), pause_s=0.7))  # fmt: skip
add(803, "Drained, and never closed: the client leaves by itself.",
    Plan(tell=once_at(10, _drain_and_stay)), 14)  # fmt: skip


async def _count_drains(session: Session, message: Message) -> bool:
    await session.close(4201, "the server drains")
    return True


add(804, "Drained eight times in a row: at once, but not for ever.",
    Plan(tell=once_at(2, _count_drains, 8), connections=(9, 9)), 25)  # fmt: skip


async def _rate_limited(session: Session, message: Message) -> bool:
    error = {"op": "error", "id": message.get("id"), "code": "rate_limited", "msg": "slowly"}
    await session.say({**error, "temporary": True, "retry_after_ms": 200})
    session.at.clear()
    return True


async def _forget(session: Session, message: Message) -> bool:
    return True


async def _too_few(session: Session, message: Message) -> bool:
    await session.say({**message, "subs": []})
    await session.stall()
    return True


async def _refuse_subs(session: Session, message: Message) -> bool:
    why = {"code": "too_many_subscriptions", "msg": "none may be had", "temporary": False}
    await session.say({**message, "subs": [{"error": why}]})
    await session.stall()
    return True


async def _busy_sub(session: Session, message: Message) -> bool:
    why = {"code": "unavailable", "msg": "not now", "temporary": True}
    await session.say({**message, "subs": [{"error": why}]})
    await session.stall()
    return True


add(805, "hello says 256 subscriptions; the first is refused all the same: told.",
    Plan(answer=answering("subbed", _refuse_subs, 99), ended=()))  # fmt: skip
add(806, "hello says nonsense about limits: harmless.",
    Plan(limits={"subscriptions": -1, "heartbeat_s": "often", "orders_in_flight": None},
         connections=(1, 1)))  # fmt: skip
add(807, "subbed never comes.", Plan(answer=answering("subbed", stall)), 14)
add(808, "subbed has too few answers.", Plan(answer=answering("subbed", _too_few)))
add(809, "hello says one subscription a connection: asked for one by one.",
    Plan(("trades", "book"), limits={"subscriptions": 1}))  # fmt: skip
add(810, "Subscribing is answered rate_limited: asked again.",
    Plan(answer=answering("subbed", _rate_limited), tolerant=True))  # fmt: skip

# 9xx: orders


async def _cut_answer(session: Session, message: Message) -> bool:
    await session.cut()
    return True


async def _answer_twice(session: Session, message: Message) -> bool:
    await session.say(message)
    return False


async def _order_busy(session: Session, message: Message) -> bool:
    error = {"op": "error", "id": message["id"], "code": "too_many_in_flight", "msg": "wait"}
    await session.say({**error, "temporary": True, "retry_after_ms": 50})
    return True


async def _order_unknown(session: Session, message: Message) -> bool:
    problem = {"status": 504, "code": "outcome_unknown", "detail": "no answer"}
    error = {"op": "error", "id": message["id"], "code": "outcome_unknown", "msg": "no answer"}
    await session.say({**error, "temporary": True, "problem": problem})
    return True


async def _order_refused(session: Session, message: Message) -> bool:
    problem = {"status": 422, "code": "insufficient_funds", "detail": "too poor"}
    error = {"op": "error", "id": message["id"], "code": "insufficient_funds", "msg": "too poor"}
    await session.say({**error, "temporary": False, "problem": problem})
    return True


async def _late_answer(session: Session, message: Message) -> bool:
    task = asyncio.ensure_future(_after(session, message, 0.3 / session.run.beaten))
    session.run.tasks.add(task)
    task.add_done_callback(session.run.tasks.discard)
    return True


async def _after(session: Session, message: Message, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    try:
        await session.say(message)
    except wire.Gone:
        return


_ORDERS = Plan(channels=("trades",), orders=5)
add(901, "Every order is answered.", replace(_ORDERS, connections=(1, 1)))
add(902, "The connection is cut before an answer: the same order again, under its id.",
    replace(_ORDERS, answer=answering("placed", _cut_answer, 2)), 4)  # fmt: skip
add(903, "Answers come twice.", replace(_ORDERS, answer=answering("placed", _answer_twice, 9)))
add(
    904,
    "Answers come in another order.",
    replace(_ORDERS, answer=answering("placed", _late_answer, 9)),
)
add(
    905,
    "too_many_in_flight: tried again.",
    replace(_ORDERS, answer=answering("placed", _order_busy, 3)),
)
add(906, "outcome_unknown: asked again under its id.",
    replace(_ORDERS, answer=answering("placed", _order_unknown, 3)))  # fmt: skip
add(907, "Refused: told, and not repeated.",
    replace(_ORDERS, orders=1, answer=answering("placed", _order_refused, 1),
            order_codes=("refused:insufficient_funds",)))  # fmt: skip
add(908, "An order while the server drains.",
    replace(_ORDERS, tell=once_at(3, _drain), connections=(2, 2)))  # fmt: skip

# 10xx: silence. `heartbeat_s` is one second there, so that nobody waits long.

_QUICK = {"heartbeat_s": 1.0}
add(1001, "The server goes silent in the middle, pings included (half open).",
    Plan(limits=_QUICK, tell=once_at(10, stall)), 6)  # fmt: skip
add(1002, "The same with an account, whose entries go on meanwhile.",
    Plan(("account",), limits=_QUICK, tell=once_at(10, stall), away=6), 6)  # fmt: skip


async def _pause(session: Session, message: Message) -> bool:
    await asyncio.sleep(3.5)
    return False


add(1003, "Nothing to tell for three and a half seconds, but pings are answered: stays.",
    Plan(limits=_QUICK, tell=once_at(10, _pause), connections=(1, 1)), 6)  # fmt: skip

# 11xx: server-sent events

_EVENTS = Plan(transport="events")
add(1101, "Nothing goes wrong.", replace(_EVENTS, connections=(1, 1)))
add(
    1102,
    "Cut; trades go on meanwhile: Last-Event-ID.",
    replace(_EVENTS, tell=once_at(10, cut), away=5),
)
add(1103, "Trades and an account, cut five times.",
    replace(_EVENTS, channels=("trades", "account"), tell=once_at(8, cut, 5), away=2), 10)  # fmt: skip
add(1104, "A trade is dropped.", replace(_EVENTS, tell=once_at(10, dropped)))
add(1105, "By lot, with cuts.", replace(_EVENTS, tell=chaos(0.05, 0.02), count=60), 15)
add(1106, "503 with Retry-After: 2.",
    replace(_EVENTS, meet=early(1, status(503, retry_after="2")), pause_s=2.0), 4)  # fmt: skip
add(1107, "`retry: 1500`, then a cut: stays away that long.",
    replace(_EVENTS, greet=early(1, raw(b"retry: 1500\n\n")), pause_s=1.5), 4)  # fmt: skip
add(1108, "204: for good.", replace(_EVENTS, meet=status(204), ended=(), connections=(1, 1)))
add(1109, "403: for good.", replace(_EVENTS, meet=status(403), ended=(), connections=(1, 1)))


async def _not_events(session: Session) -> bool:
    await session.line.answer(200, {"op": "hello"}, connection="close")
    return True


add(1110, "200, but not of events: for good.",
    replace(_EVENTS, meet=_not_events, ended=(), connections=(1, 1)))  # fmt: skip
add(1111, "The event `close` with 4003: for good.",
    replace(_EVENTS, tell=once_at(10, closing(4003), 99), ended=(4003,), connections=(1, 1)))  # fmt: skip
add(
    1112,
    "The event `close` with 4201: back.",
    replace(_EVENTS, tell=once_at(10, closing(GOOD_CODE))),
)
add(1113, "The event `close` with 4103: a fresh token, then back.",
    replace(_EVENTS, tell=once_at(10, closing(4103)), fresh_token=True))  # fmt: skip
add(
    1114, "401 once: another token.", replace(_EVENTS, meet=early(1, status(401)), fresh_token=True)
)
for _number, _about, _data in (
    (1115, "Comments, carriage returns, unknown fields and events: harmless.",
     b":\r\n: hm\r\nfoo: bar\r\n\r\nevent: other\r\ndata: {}\r\n\r\nid\r\n\r\n"),
    (1116, "An event in several lines of data: harmless.", b'data: {"op":\ndata: "pong"}\n\n'),
    (1117, "An event whose data is no JSON: the connection is given up.", b"data: {\n\n"),
):  # fmt: skip
    _most = 12 if _number == 1117 else 1
    add(_number, _about,
        replace(_EVENTS, tell=bytes_at(10, _data, _most > 1), connections=(1, _most)))  # fmt: skip
add(1118, "Silence, not even comments: given up.",
    replace(_EVENTS, limits=_QUICK, tell=once_at(10, stall)), 8)  # fmt: skip
add(1119, "A book with a wrong checksum.",
    replace(_EVENTS, channels=("book",), tell=once_at(10, damaged(checksum=1))))  # fmt: skip
