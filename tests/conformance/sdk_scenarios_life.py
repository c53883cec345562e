"""Scenarios of close codes, draining, limits, orders, silence and events: 7xx to 11xx."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

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
    once_at,
    raw,
    reset,
    stall,
    status,
)

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

# 10xx: silence. `heartbeat_s` is one second there, so that nobody waits long; where the client has
# to stay it is three, for a busy machine may be late with a pong.

_QUICK = {"heartbeat_s": 1.0}
add(1001, "The server goes silent in the middle, pings included (half open).",
    Plan(limits=_QUICK, tell=once_at(10, stall)), 6)  # fmt: skip
add(1002, "The same with an account, whose entries go on meanwhile.",
    Plan(("account",), limits=_QUICK, tell=once_at(10, stall), away=6), 6)  # fmt: skip


async def _pause(session: Session, message: Message) -> bool:
    await asyncio.sleep(10)
    return False


add(1003, "Nothing to tell for ten seconds, but pings are answered: stays.",
    Plan(limits={"heartbeat_s": 3.0}, tell=once_at(10, _pause), connections=(1, 1)), 13)  # fmt: skip

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
    replace(_EVENTS, tell=once_at(10, closing(4201))),
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
