"""Orders over a stream: many under way on one connection, each under a name of its own.

Every order carries a `client_order_id`, made here when none is given. When the connection is lost
before the answer came, the same order is asked for again under the same one: it is never placed
twice.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from tbot.client.amounts import Amount, amount_text
from tbot.client.backoff import FullJitter
from tbot.client.errors import (
    AuthError,
    NotFound,
    OutcomeUnknown,
    Refused,
    TBotError,
    Unavailable,
)
from tbot.client.models import Order

IN_FLIGHT: Final = 64
"""Messages with orders under way on one stream; more wait here."""

type OrderSide = Literal["buy", "sell"]
type TimeInForce = Literal["gtc", "ioc", "fok"]


@dataclass(frozen=True, slots=True)
class NewOrder:
    """An order to be placed: a limit order when there is a `limit_price`, else a market order.

    Args:
        quantity: In the base asset.
        quote_amount: Market orders only, instead of `quantity`: what to spend or receive.
    """

    account_id: UUID | str
    symbol: str
    side: OrderSide
    quantity: Amount | None = None
    quote_amount: Amount | None = None
    limit_price: Amount | None = None
    time_in_force: TimeInForce | None = None
    post_only: bool = False
    client_order_id: str = field(default_factory=lambda: f"sdk-{secrets.token_hex(14)}")

    def body(self) -> dict[str, Any]:
        """As the server reads it."""
        body: dict[str, Any] = {
            "account_id": str(self.account_id),
            "symbol": self.symbol,
            "side": self.side,
            "type": "market" if self.limit_price is None else "limit",
            "client_order_id": self.client_order_id,
        }
        for name in ("quantity", "quote_amount", "limit_price"):
            value = getattr(self, name)
            if value is not None:
                body[name] = amount_text(value)
        if self.time_in_force is not None:
            body["time_in_force"] = self.time_in_force
        if self.post_only:
            body["post_only"] = True
        return body


class ConnectionLost(Exception):
    """The connection ended before an answer came."""


class Ordering(ABC):
    """What a stream can do with orders.

    Args:
        retry_s: How long something is tried again while the server is away or busy.
    """

    def __init__(self, retry_s: float = 30.0) -> None:
        self._retry_s = retry_s
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._slots = asyncio.Semaphore(IN_FLIGHT)

    @abstractmethod
    def _number(self) -> int:
        """An id for a message."""

    @abstractmethod
    async def _say_when_connected(self, message: dict[str, Any], within_s: float) -> None:
        """Send a message once there is a connection.

        Raises:
            TimeoutError: There was none in time.
            ConnectionLost: It was lost while sending.
            TBotError: The stream has ended.
        """

    async def place(
        self,
        account_id: UUID | str,
        symbol: str,
        side: OrderSide,
        *,
        quantity: Amount | None = None,
        quote_amount: Amount | None = None,
        limit_price: Amount | None = None,
        time_in_force: TimeInForce | None = None,
        post_only: bool = False,
        client_order_id: str | None = None,
        wait_s: float | None = None,
    ) -> Order:
        """Place an order; see `NewOrder`.

        Args:
            wait_s: Let the answer wait this long for the venue's word (and a market order's end).

        Raises:
            Refused: With the reason's `code`; nothing was placed.
            Unavailable: Nothing was placed.
            OutcomeUnknown: Call again with its `client_order_id` to learn what became of it.
        """
        name = {} if client_order_id is None else {"client_order_id": client_order_id}
        order = NewOrder(
            account_id,
            symbol,
            side,
            quantity,
            quote_amount,
            limit_price,
            time_in_force,
            post_only,
            **name,
        )
        message = {"op": "place", "order": order.body()}
        answer = await self._order(message, order.client_order_id, wait_s)
        return msgspec.convert(answer["order"], Order)

    async def place_all(
        self, orders: Sequence[NewOrder], wait_s: float | None = None
    ) -> list[Order | TBotError]:
        """Place some orders with one message; `limits["orders_per_message"]` says how many.

        Args:
            wait_s: As for `place`.

        Returns:
            For each its order, or why there is none; after `OutcomeUnknown` the same order (with
            its `client_order_id`) may be placed again.

        Raises:
            TBotError: As `place`, for all of them.
        """
        if not orders:
            return []
        message = {"op": "place", "orders": [order.body() for order in orders]}
        answer = await self._order(message, orders[0].client_order_id, wait_s)
        return [
            (
                msgspec.convert(one["order"], Order)
                if "order" in one
                else error_of(one["problem"], order.client_order_id)
            )
            for one, order in zip(answer["results"], orders, strict=True)
        ]

    async def cancel(self, order_id: UUID | str, wait_s: float | None = None) -> Order:
        """Ask for an order's cancellation; repeating it is harmless.

        Args:
            wait_s: Let the answer wait this long for the order's end.

        Raises:
            Refused, NotFound, Unavailable, OutcomeUnknown: As for `place`.
        """
        answer = await self._order({"op": "cancel", "order_id": str(order_id)}, None, wait_s)
        return msgspec.convert(answer["order"], Order)

    async def cancel_some(
        self, order_ids: Sequence[UUID | str], wait_s: float | None = None
    ) -> list[Order | TBotError]:
        """Ask for the cancellation of some orders with one message.

        Returns:
            For each its order, or why not.

        Raises:
            TBotError: As `cancel`, for all of them.
        """
        if not order_ids:
            return []
        message = {"op": "cancel", "order_ids": [str(one) for one in order_ids]}
        answer = await self._order(message, None, wait_s)
        return [
            (
                msgspec.convert(one["order"], Order)
                if "order" in one
                else error_of(one["problem"], None)
            )
            for one in answer["results"]
        ]

    async def amend(
        self,
        order_id: UUID | str,
        *,
        quantity: Amount | None = None,
        limit_price: Amount | None = None,
    ) -> Order:
        """Change an open order, where its venue can do that in one command.

        Raises:
            Refused: `amend_unsupported` where it cannot (no venue adapter does, yet), and nothing
                was changed: cancel with `wait_s`, look at what was filled, and place the rest.
            NotFound, Unavailable, OutcomeUnknown: As for `place`.
        """
        message: dict[str, Any] = {"op": "amend", "order_id": str(order_id)}
        for name, value in (("quantity", quantity), ("limit_price", limit_price)):
            if value is not None:
                message[name] = amount_text(value)
        answer = await self._order(message, None)
        return msgspec.convert(answer["order"], Order)

    async def cancel_all(self, account_id: UUID | str, symbol: str | None = None) -> list[UUID]:
        """Ask for the cancellation of all open orders of an account; their ids."""
        message = {"op": "cancel_all", "account_id": str(account_id)}
        if symbol is not None:
            message["symbol"] = symbol
        answer = await self._order(message, None)
        return msgspec.convert(answer["orders"], list[UUID])

    async def _order(
        self, message: dict[str, Any], key: str | None, wait_s: float | None = None
    ) -> dict[str, Any]:
        """Say something that may be repeated, until it is answered or the time is over."""
        until_s = time.monotonic() + self._retry_s + (wait_s or 0.0)
        if wait_s is not None:
            message = {**message, "wait_s": wait_s}
        error: TBotError
        backoff = FullJitter(0.05, 2.0)
        sent = maybe_done = False
        async with self._slots:
            while True:
                number = self._number()
                future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
                self._calls[number] = future
                after_s, sent = 0.0, False
                try:
                    left_s = until_s - time.monotonic()
                    await self._say_when_connected({**message, "id": number}, max(0.0, left_s))
                    sent = True
                    answer = await asyncio.wait_for(future, max(0.05, until_s - time.monotonic()))
                    if answer["op"] != "error":
                        return answer
                    error = error_of(answer.get("problem", answer), key)
                    if not answer.get("temporary"):
                        raise error
                    maybe_done |= isinstance(error, OutcomeUnknown)
                    after_s = float(answer.get("retry_after_ms") or 0) / 1000
                except (ConnectionLost, TimeoutError):
                    maybe_done |= sent
                    error = Unavailable("no answer from the server")
                except TBotError as told:
                    # A refusal has looked whether it was done before; nothing else has.
                    if maybe_done and not isinstance(told, Refused):
                        raise OutcomeUnknown(str(told), key) from told
                    raise
                finally:
                    self._calls.pop(number, None)
                    future.cancel()
                delay_s = backoff.next_s(after_s)
                if time.monotonic() + delay_s >= until_s:
                    raise OutcomeUnknown(str(error), key) if maybe_done else error
                await asyncio.sleep(delay_s)

    def _answered(self, message: dict[str, Any]) -> bool:
        """Take an answer; False when nobody here asked for it."""
        future = self._calls.get(message.get("id", -1))
        if future is None:
            return False
        if not future.done():
            future.set_result(message)
        return True

    def _unanswered(self) -> None:
        """The connection is gone: nothing that was asked on it will be answered."""
        for future in self._calls.values():
            if not future.done():
                future.set_exception(ConnectionLost())


def error_of(problem: dict[str, Any], key: str | None) -> TBotError:
    """What a problem document, or an error without one, means to the program."""
    code = str(problem.get("code", ""))
    detail = str(problem.get("detail") or problem.get("msg") or "")
    status = int(problem.get("status") or 0)
    if status == 504:
        return OutcomeUnknown(detail, key)
    if status in (401, 403):
        return AuthError(detail, code)
    if status == 404:
        return NotFound(detail)
    if status in (429, 503) or code in ("rate_limited", "too_many_in_flight"):
        return Unavailable(detail)
    return Refused(code, detail, status, problem)
