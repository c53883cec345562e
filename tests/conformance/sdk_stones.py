"""What scenarios are made of: the list, and the things that may happen to a connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sdk_core import Act, Meet, Message, Plan, Session


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
        session.run.ends()
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
