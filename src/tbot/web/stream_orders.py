"""Orders on the stream: `place`, `cancel`, `cancel_all` and `amend`, as REST does them.

The same functions check, commit and describe an order, so an answer here is the body that REST
would have sent, or its problem document; `client_order_id` and keys mean the same, and a key used
on one is known on the other. What differs is the way: many orders may be under way on one
connection, each answered when it is durable, or, with `wait_s`, when the venue has spoken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from prometheus_client import Counter, Gauge
from pydantic import TypeAdapter
from starlette.responses import Response

from tbot.auth.principal import Peer, Principal
from tbot.auth.scopes import Scope
from tbot.core import trace
from tbot.core.errors import InvalidToken, QuotaExceeded
from tbot.core.ids import random_hex
from tbot.journal.commands import Actor
from tbot.ledger.members import Access
from tbot.orders import flow
from tbot.orders.commands import Placed
from tbot.orders.model import Order
from tbot.web.answers import json_answer
from tbot.web.deps import Deps
from tbot.web.edge import problem_response
from tbot.web.fields import Id, PositiveAmount, Symbol
from tbot.web.once import once_of, respond
from tbot.web.orders import NewOrder, canceled, ended, order_request, placed
from tbot.web.ownership import own_account, own_order
from tbot.web.problems import Problem
from tbot.web.ratelimit import Kind, Limits
from tbot.web.stream_order_words import checked, items_of, keys_of, wait_s_of
from tbot.web.stream_words import Meter, id_of, orders_per_message, problem

if TYPE_CHECKING:
    from tbot.web.stream_session import Session

PLACE_TARGET: Final = b"POST /v1/orders"
_PATIENCE_S: Final = 0.05
"""When to try again with too many under way: they are answered in milliseconds."""

_orders_total = Counter(
    "tbot_stream_orders", "Orders placed and canceled on the stream.", ["op", "status"]
)
_in_flight = Gauge("tbot_stream_orders_in_flight", "Of those, the ones not answered yet.")

_new_order: Final = NewOrder.__pydantic_validator__.validate_python
_id: Final = TypeAdapter(Id).validator.validate_python
_symbol: Final = TypeAdapter(Symbol).validator.validate_python
_amount: Final = TypeAdapter(PositiveAmount).validator.validate_python
type Do = Callable[[Any, Asked], Awaitable[Response]]
"""Does one thing as it was asked for."""

_KINDS: Final = {"place": Kind.ORDERS, "amend": Kind.WRITES}
_SCOPE: Final = {"method": "STREAM"}
"""What logs call the method of a request that is none."""


@dataclass(slots=True)
class Asked:
    """How one thing was asked for.

    Attributes:
        actor: The same user, as the journal names who did it.
        key: The idempotency key, if there is one.
        wait_s: How long the answer may wait for the venue's word; None for not at all.
    """

    principal: Principal
    actor: Actor
    key: str | None
    wait_s: float | None


class OrderEntry:
    """The order desk as the streams of one process see it.

    Args:
        deps: The parts that REST's routes are given.
        limits: The rate limits that REST's requests count under, too.
    """

    def __init__(self, deps: Deps, limits: Limits) -> None:
        self.deps = deps
        self.limits = limits
        self.in_flight = 0
        self.waits: set[asyncio.Task[Order]] = set()
        self.settling = False
        self._idle = asyncio.Event()
        self._idle.set()

    def line(self, session: Session) -> OrderLine:
        """What one connection needs."""
        return OrderLine(self, session)

    def begun(self, count: int) -> None:
        """So many orders more are under way; a negative number is answered."""
        self.in_flight += count
        _in_flight.set(self.in_flight)
        if self.in_flight:
            self._idle.clear()
        else:
            self._idle.set()

    async def settle(self, timeout_s: float) -> None:
        """Wait until nothing is under way, or for so long.

        Orders that are durable and only wait for the venue's word are answered as they are.
        """
        self.settling = True
        for wait in self.waits:
            wait.cancel()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return


class OrderLine:
    """One connection's orders: how fast they come and how many are under way."""

    __slots__ = (
        "_count", "_desk", "_in_flight", "_meter", "_name", "_session", "_settings", "_waits"
    )  # fmt: skip

    def __init__(self, desk: OrderEntry, session: Session) -> None:
        self._desk = desk
        self._session = session
        self._settings = desk.deps.settings.stream
        self._meter = Meter(self._settings.orders_per_s_max)
        self._name = random_hex(12)
        self._count = 0
        self._in_flight = 0
        self._waits: set[asyncio.Task[Order]] = set()

    def end(self) -> None:
        """The connection is over: what is under way goes on, but nobody waits for the venue."""
        for wait in self._waits:
            wait.cancel()

    def take(self, message: dict[str, Any]) -> None:
        """Begin what a message asks for; never waits."""
        session = self._session
        principal = session.principal
        assert principal is not None
        try:
            items = items_of(message, orders_per_message(self._settings))
            keys = keys_of(message, len(items))
            wait_s = wait_s_of(message, self._desk.deps.settings.http.wait_s_max)
        except Problem as error:
            self._tell_problem(message, error.response(self._request_id()))
            return
        count = len(items)
        late_s = self._meter.take(asyncio.get_running_loop().time(), count)
        if late_s > 0:
            session.offended(message, late_s)
            return
        if self._in_flight + count > self._settings.orders_in_flight_max:
            why = f"at most {self._settings.orders_in_flight_max} orders may be under way"
            told = problem(
                "too_many_in_flight", why, message, temporary=True, retry_after_s=_PATIENCE_S
            )
            session.subscriber.tell(told)
            return
        self._in_flight += count
        self._desk.begun(count)
        session.start(self._carry_out(message, items, keys, principal, wait_s))

    def _request_id(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"

    # Carrying out, side by side

    async def _carry_out(
        self,
        message: dict[str, Any],
        items: Sequence[Any],
        keys: Sequence[str | None],
        principal: Principal,
        wait_s: float | None,
    ) -> None:
        op: str = message["op"]
        do: Do = {"place": self._place, "cancel": self._cancel, "amend": self._amend}.get(
            op, self._cancel_all
        )
        try:
            if not await self._counted(message, len(items), principal):
                return
            work = [
                self._answered(op, do, item, principal, key, wait_s)
                for item, key in zip(items, keys, strict=True)
            ]
            # One alone needs no task of its own.
            answers = [await work[0]] if len(work) == 1 else await asyncio.gather(*work)
        finally:
            self._in_flight -= len(items)
            self._desk.begun(-len(items))
        self._answer(message, answers)

    async def _counted(self, message: dict[str, Any], count: int, principal: Principal) -> bool:
        """Count orders under the same limits as over HTTP; False when they are refused."""
        kind = _KINDS.get(message["op"], Kind.CANCELS)
        try:
            await self._desk.limits.take(kind, self._session.address or None, principal, count)
        except QuotaExceeded as error:
            response = problem_response(error, _SCOPE, self._request_id())
            _orders_total.labels(message["op"], str(response.status_code)).inc(count)
            self._tell_problem(message, response)
            return False
        return True

    async def _check(self, principal: Principal) -> None:
        """What REST asks for with every request.

        Raises:
            AuthError: The token does not cover this, or counts no more.
        """
        principal.require(Scope.ORDERS_WRITE)
        if principal.expires_at_s <= time.time():
            raise InvalidToken("the token has expired")
        if principal.key is not None:
            return  # a revoked key ends the connection: `Streams` is woken by it
        sessions = self._desk.deps.auth.sessions
        if not await sessions.lives(principal.session_id, principal.user_id):
            self._session.end_session()
            raise InvalidToken("the session is over")

    async def _answered(
        self,
        op: str,
        do: Do,
        item: Any,
        principal: Principal,
        key: str | None,
        wait_s: float | None,
    ) -> Response:
        """Do one thing; every fault gets an answer."""
        request_id = self._request_id()
        trace.naming({"request_id": request_id})  # of this task alone
        actor = principal.actor(Peer(self._session.address or None, request=request_id))
        try:
            await self._check(principal)
            response = await do(item, Asked(principal, actor, key, wait_s))
        except Exception as error:  # noqa: BLE001 - every fault gets an answer
            response = problem_response(error, _SCOPE, request_id)
        _orders_total.labels(op, str(response.status_code)).inc()
        return response

    async def _place(self, item: Any, asked: Asked) -> Response:
        deps = self._desk.deps
        body: NewOrder = checked(_new_order, item)
        wanted = order_request(body)
        await own_account(deps, asked.principal, body.account_id, need=Access.TRADE)
        once = None
        if asked.key is not None:
            once = once_of(
                deps,
                asked.principal,
                placed,
                asked.key,
                PLACE_TARGET,
                item,
                asked.actor.request or "",
            )
        outcome = await flow.place(deps.orders, asked.actor, body.account_id, wanted, once)
        if asked.wait_s is None or not isinstance(outcome, Placed):
            return respond(outcome, placed, once)
        order = outcome.order
        if outcome.replayed or not flow.settled(order):
            order = await self._waited(order, flow.settled, asked.wait_s)
        return placed(Placed(order, outcome.replayed))

    async def _cancel(self, item: Any, asked: Asked) -> Response:
        deps = self._desk.deps
        order_id: UUID = checked(_id, item, "order_id")
        order = await own_order(deps, asked.principal, order_id)
        once = None
        if asked.key is not None:
            target = f"DELETE /v1/orders/{order_id}".encode()
            once = once_of(
                deps,
                asked.principal,
                canceled,
                asked.key,
                target,
                None,
                asked.actor.request or "",
            )
        outcome = await flow.cancel(deps.orders, asked.actor, order.account_id, order.id, once)
        if asked.wait_s is None or not isinstance(outcome, Order):
            return respond(outcome, canceled, once)
        return canceled(await self._waited(outcome, ended, asked.wait_s))

    async def _waited(self, order: Order, done: Callable[[Order], bool], wait_s: float) -> Order:
        """The order when `done` holds of it, or as it is when nobody can wait any longer."""
        if self._desk.settling or self._session.subscriber.closing:
            return order
        wait = asyncio.create_task(flow.wait_for(self._desk.deps.orders, order, done, wait_s))
        for waits in (self._waits, self._desk.waits):
            waits.add(wait)
            wait.add_done_callback(waits.discard)
        try:
            await asyncio.wait((wait,))
        finally:
            wait.cancel()
        return order if wait.cancelled() else wait.result()

    async def _cancel_all(self, item: Any, asked: Asked) -> Response:
        deps = self._desk.deps
        account_id: UUID = checked(_id, item.get("account_id"), "account_id")
        symbol = item.get("symbol")
        if symbol is not None:
            symbol = checked(_symbol, symbol, "symbol")
        await own_account(deps, asked.principal, account_id, need=Access.TRADE)
        ids = await flow.cancel_all(deps.orders, asked.actor, account_id, symbol)
        return json_answer({"requested": len(ids), "orders": ids}, 202)

    async def _amend(self, item: Any, asked: Asked) -> Response:
        """Refused, after every check that a venue which can amend would need.

        No adapter declares that its venue changes an order in one command; a cancel and a new
        order, one after the other, are two, and the client has to say so (what filled between
        them is its business).
        """
        order_id: UUID = checked(_id, item.get("order_id"), "order_id")
        for name in ("quantity", "limit_price"):
            if item.get(name) is not None:
                checked(_amount, item[name], name)
        order = await own_order(self._desk.deps, asked.principal, order_id)
        raise Problem(
            "amend_unsupported", f"orders at {order.venue} are not amended: cancel and place anew"
        )

    # Answers

    def _answer(self, message: dict[str, Any], answers: Sequence[Response]) -> None:
        op = "placed" if message["op"] == "place" else "cancel_requested"
        if "orders" in message or "order_ids" in message:
            told = {"op": op, **id_of(message), "results": [self._result(one) for one in answers]}
        elif answers[0].status_code < 400:
            told = {"op": op, **id_of(message), **self._result(answers[0])}
        else:
            self._tell_problem(message, answers[0])
            return
        self._session.subscriber.tell(told)

    def _result(self, answer: Response) -> dict[str, Any]:
        result: dict[str, Any] = {"status": answer.status_code}
        if answer.status_code >= 400:
            return result | {"problem": self._body(answer)}
        if answer.headers.get("idempotent-replayed") == "true":
            result["replayed"] = True
        if b'"requested":' in answer.body[:16]:
            return result | dict(msgspec.json.decode(answer.body))
        return result | {"order": self._body(answer)}

    def _body(self, answer: Response) -> Any:
        """What REST would have sent: as it is where it can be."""
        if self._session.subscriber.codec.binary:
            return msgspec.json.decode(answer.body)
        return msgspec.Raw(bytes(answer.body))

    def _tell_problem(self, message: dict[str, Any], answer: Response) -> None:
        document: Mapping[str, Any] = msgspec.json.decode(answer.body)
        status = answer.status_code
        wait = answer.headers.get("retry-after")
        told = problem(
            document["code"],
            document["detail"],
            message,
            temporary=status in (429, 503, 504),
            retry_after_s=None if wait is None else float(wait),
        )
        self._session.subscriber.tell({**told, "problem": document})
