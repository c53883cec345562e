"""Many transfers of one request: read, handed to the write path as one, answered each for itself.

An item is read quickly where it is plainly good: the four members that every transfer has, a key
at most, accounts that are known and the caller's. All others go through the model and the checks
of a request of their own, whose words their problems are told in.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.auth.flow import Principal
from tbot.core.ids import new_id
from tbot.core.money import ZERO
from tbot.core.refusals import Refused
from tbot.journal.commands import Actor
from tbot.journal.once import Kept, Once, claim, contents_of, key_of
from tbot.ledger import transfers_flow as flow
from tbot.ledger.transfers import NewTransfer, Transfer
from tbot.web.answers import json_body
from tbot.web.deps import Deps
from tbot.web.edge import problem_response
from tbot.web.fields import GOOD_AMOUNT
from tbot.web.once import KEY_TEXT, BodyRendering, canonical, target_of
from tbot.web.ownership import own_account
from tbot.web.problems import refused
from tbot.web.transfer_forms import BulkItem, new_transfer, transfer_bytes

_ASSET: Final = re.compile(r"[A-Z0-9]{1,20}", re.ASCII)
_MEMBERS: Final = 4

_encode = msgspec.json.Encoder().encode

type _Asked = tuple[NewTransfer, Once | None]


class Bulk:
    """One request's transfers, from its items to their results.

    Args:
        key: The request's own idempotency key; an item without one gets it with its index.
    """

    __slots__ = ("_actor", "_content", "_key", "_parts", "_principal", "_request", "_request_id")

    def __init__(
        self,
        request: HttpRequest,
        parts: Deps,
        principal: Principal,
        actor: Actor,
        key: str | None,
    ) -> None:
        self._request = request
        self._parts = parts
        self._principal = principal
        self._actor = actor
        self._key = key
        self._request_id: str = request.scope.get("tbot.request_id", "")
        secret = parts.auth.keys.cursor_secret
        self._content: Callable[[bytes], bytes] = contents_of(secret, target_of(request))

    async def results(self, items: Sequence[Any]) -> Response:
        """Make what can be made; the answer has a result for each item, in their order.

        Raises:
            Problem: `idempotency_key_reused`: nothing was made, the key is another request's.
        """
        await self._claim(items)
        asked: list[_Asked | Exception | None] = [
            self._plain(item, place) for place, item in enumerate(items)
        ]
        unusual = [place for place, one in enumerate(asked) if one is None]
        if unusual:
            prepared = await self._prepare([items[place] for place in unusual], unusual)
            for place, one in zip(unusual, prepared, strict=True):
                asked[place] = one
        good = [one for one in asked if isinstance(one, tuple)]
        outcomes = iter(await flow.create_many(self._parts.orders.accounts, self._actor, good))
        told = [
            (
                self._problem(one)
                if isinstance(one, Exception)
                else self._result(next(outcomes), one[1] if one else None)
            )
            for one in asked
        ]
        return json_body(b'{"results":[%b]}' % b",".join(told))

    async def _claim(self, items: Sequence[Any]) -> None:
        """Let the request's key stand for these very items in this order."""
        if self._key is None:
            return
        content = self._content(canonical({"transfers": items}))
        async with self._parts.pool.acquire() as connection:
            taken = await claim(connection, key_of(self._principal.user_id, self._key), content)
        if taken is not None:
            raise refused(taken)

    def _plain(self, item: Any, place: int) -> _Asked | None:
        """What a plainly good item asks for; None for one that is looked at with care."""
        if type(item) is not dict:
            return None
        text, asset = item.get("amount"), item.get("asset")
        source_id, target_id = item.get("source_account_id"), item.get("target_account_id")
        key = item.get("key")
        if (
            type(text) is not str
            or type(asset) is not str
            or type(source_id) is not str
            or type(target_id) is not str
            or len(item) != (_MEMBERS if key is None else _MEMBERS + 1)
            or not GOOD_AMOUNT.fullmatch(text)
            or not _ASSET.fullmatch(asset)
        ):
            return None
        desk = self._parts.orders.accounts
        source, target = desk.known(source_id), desk.known(target_id)
        if source is None or target is None or source.owner_id != self._principal.user_id:
            return None
        amount = Decimal(text)
        if amount <= ZERO:
            return None
        content = f'{{"amount":"{text}","asset":"{asset}",'
        if key is not None:
            if type(key) is not str or not KEY_TEXT.fullmatch(key):
                return None
            content += f'"key":"{key}",'
        elif self._key is not None:
            key = f"{self._key}#{place}"
        once = None
        if key is not None:
            # As the canonical form of these members is, which have nothing to be escaped.
            content += f'"source_account_id":"{source_id}","target_account_id":"{target_id}"}}'
            once = self._once(key, content.encode("ascii"))
        new = NewTransfer(
            id=new_id(),
            source_id=source.account_id,
            target_id=target.account_id,
            asset=asset,
            amount=amount,
        )
        return new, once

    def _once(self, key: str, content: bytes) -> Once:
        return Once(
            key_of(self._principal.user_id, key),
            self._content(content),
            BodyRendering(_made, self._request_id),
        )

    async def _prepare(
        self, items: Sequence[Any], places: Sequence[int]
    ) -> list[_Asked | Exception]:
        """What items ask for that need a closer look, or what is wrong with them."""
        bodies = [_body(item) for item in items]
        # Read for all at once, so that the items do not wait one by one.
        fit = [one for one in bodies if isinstance(one, BulkItem)]
        desk = self._parts.orders.accounts
        await desk.know({a for one in fit for a in (one.source_account_id, one.target_account_id)})
        await desk.assets.check((one.asset, one.amount) for one in fit)
        return await asyncio.gather(
            *(
                self._careful(body, item, place)
                for body, item, place in zip(bodies, items, places, strict=True)
            )
        )

    async def _careful(
        self, body: BulkItem | RequestValidationError, item: Any, place: int
    ) -> _Asked | Exception:
        if isinstance(body, RequestValidationError):
            return body
        try:
            new = new_transfer(body, self._parts.settings.ledger)
            await own_account(self._parts, self._principal, new.source_id)
            key = body.key or (self._key and f"{self._key}#{place}")
            once = None
            if key is not None:
                once = self._once(key, canonical(item))
        except Exception as error:  # noqa: BLE001 - the other items go on
            return error
        return new, once

    def _result(self, outcome: flow.Made, once: Once | None) -> bytes:
        if isinstance(outcome, tuple):
            kept = once.render if once is not None else None
            body = kept.body_of(outcome) if isinstance(kept, BodyRendering) else None
            return b'{"status":201,"transfer":%b}' % (body or transfer_bytes(outcome[0]))
        if isinstance(outcome, Kept):
            what = "transfer" if outcome.status < 400 else "problem"
            content = {
                "status": outcome.status,
                what: msgspec.Raw(outcome.body),
                "replayed": True,
            }
            return _encode(content)
        return self._problem(refused(outcome) if isinstance(outcome, Refused) else outcome)

    def _problem(self, error: Exception) -> bytes:
        response = problem_response(error, self._request.scope, self._request_id)
        problem = msgspec.Raw(bytes(response.body))
        return _encode({"status": response.status_code, "problem": problem})


def _made(made: tuple[Transfer, ...]) -> tuple[bytes, str]:
    return transfer_bytes(made[0]), f"/v1/transfers/{made[0].id}"


def _body(item: Any) -> BulkItem | RequestValidationError:
    try:
        return BulkItem.model_validate(item)
    except ValidationError as error:
        return RequestValidationError(
            [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        )
