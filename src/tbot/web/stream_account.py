"""The private channel `account`: one account's journal, entry by entry, after a snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from tbot.core import money
from tbot.core.errors import IntegrityError
from tbot.db.pool import DATABASE_FAULTS
from tbot.journal.cursors import Cursor, Journal, Place, Pool, Recorded
from tbot.ledger import store as ledger_store
from tbot.market.subscribers import Subscriber
from tbot.market.topics import JSON, MSGPACK, BinaryFrame, Codec, Frame
from tbot.orders import store as orders_store
from tbot.orders.model import Order
from tbot.web.stream_words import CLOSE_UNAVAILABLE

_log = structlog.get_logger(__name__)

OPEN_ORDERS_MAX: Final = 1000
CLOSE_STATE_LOST: Final = 4202


async def read_snapshot(pool: Pool, account_id: UUID) -> tuple[Place, dict[str, Any]]:
    """The account's state and the place in its stream that it is the state of.

    Raises:
        NotFound: No such account.
    """
    async with (
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        head = await connection.fetchrow(
            "SELECT seq, hash FROM streams WHERE account_id = $1", account_id
        )
        _, balances = await ledger_store.get_balances(connection, account_id)
        _, positions = await orders_store.get_positions(connection, account_id)
        orders = await orders_store.list_orders(
            connection, [account_id], is_open=True, limit=OPEN_ORDERS_MAX
        )
    data = {
        "account_id": str(account_id),
        "balances": [
            {
                "asset": asset,
                "total": money.text(balance.available + balance.held),
                "available": money.text(balance.available),
                "held": money.text(balance.held),
            }
            for asset, balance in balances.items()
        ],
        "positions": [
            {
                "symbol": position.symbol,
                "quantity": money.text(position.quantity),
                "cost": money.text(position.cost),
                "realized_pnl": money.text(position.realized_pnl),
            }
            for position in positions
        ],
        "orders": [_order_json(order) for order in orders],
    }
    return Place(head["seq"], head["hash"]), data


def _order_json(order: Order) -> dict[str, Any]:
    """An order as REST tells it (`tbot.web.orders`; a test holds the two together)."""
    data = order.to_data()
    for name in ("parent_id", "held_asset", "held_amount", "send_by"):
        del data[name]
    average = order.average_price
    held = {"asset": order.held_asset, "amount": money.text(order.held_amount)}
    return data | {
        "average_price": None if average is None else money.text(average),
        "fees": [{"asset": asset, "amount": amount} for asset, amount in order.fees.items()],
        "held": held if order.held_amount else None,
        "created_at": order.created_at,
        "updated_at": order.updated_at,
        "sequence": order.seq,
    }


def snapshot_frame(number: int, place: Place, data: dict[str, Any], codec: Codec = JSON) -> Frame:
    """A snapshot as a message."""
    message = {"op": "snap", "ch": number, "seq": place.seq, "hash": place.prefix, "data": data}
    return codec.frame(place.seq, message)


def entry_frame(number: int, entry: Recorded, codec: Codec = JSON) -> Frame:
    """A journal entry as a message; encoded once for all readers of a codec.

    In JSON its stored bytes are in it unchanged.
    """
    made = entry.memo if isinstance(entry.memo, tuple) else (0, None, None)
    if made[0] != number:
        made = (number, None, None)
    frame: Frame | None = made[2 if codec.binary else 1]
    if frame is None:
        frame = _packed(number, entry) if codec.binary else _written(number, entry)
        entry.memo = (number, made[1], frame) if codec.binary else (number, frame, made[2])
    return frame


def _packed(number: int, entry: Recorded) -> Frame:
    message = {
        "op": "delta",
        "ch": number,
        "seq": entry.seq,
        "prev": entry.seq - 1,
        "hash": entry.prefix,
        "data": msgspec.json.decode(entry.body),
    }
    return BinaryFrame(entry.seq, MSGPACK.encode(message))


def _written(number: int, entry: Recorded) -> Frame:
    head = (
        f'{{"op":"delta","ch":{number},"seq":{entry.seq},"prev":{entry.seq - 1},'
        f'"hash":"{entry.prefix}","data":'
    )
    return Frame(entry.seq, head.encode() + entry.body + b"}")


class PrivateStream:
    """One client's subscription to one account: moves a cursor, as fast as the client reads.

    Args:
        number: The channel number of the account's frames.
        place: Where to begin: entries after it are delivered.
    """

    def __init__(
        self,
        journal: Journal,
        subscriber: Subscriber,
        account_id: UUID,
        number: int,
        place: Place,
    ) -> None:
        self._subscriber = subscriber
        self._cursor: Cursor = journal.open(account_id, place)
        self.account_id = account_id
        self.number = number

    async def run(self, first: Sequence[Frame] = ()) -> None:
        """Deliver until the client is gone or `stop` is called.

        Args:
            first: Frames to deliver before the entries: a snapshot.
        """
        delay_s = 0.1
        try:
            if not await self._push(first):
                return
            while True:
                try:
                    entries = await self._cursor.next()
                    delay_s = 0.1
                except DATABASE_FAULTS as error:
                    _log.warning(
                        "stream_read_failed", account=str(self.account_id), error=repr(error)
                    )
                    await asyncio.sleep(delay_s)
                    delay_s = min(2.0, delay_s * 2)
                    continue
                codec = self._subscriber.codec
                frames = [entry_frame(self.number, entry, codec) for entry in entries]
                if not await self._push(frames):
                    return
        except IntegrityError as error:
            # The journal is not what this client was told: it must start from a snapshot.
            _log.error("stream_state_lost", account=str(self.account_id), error=str(error))
            self._subscriber.close(CLOSE_STATE_LOST, "the stream was restored to another state")
        except Exception:
            # A bug, but the client must not be left with a stream that silently stands still.
            self._subscriber.close(CLOSE_UNAVAILABLE, "the stream cannot go on")
            raise
        finally:
            self._cursor.close()

    async def _push(self, frames: Sequence[Frame]) -> bool:
        """Queue frames when there is room; False when the subscription has ended meanwhile."""
        if not await self._subscriber.room() or self._cursor.closed:
            return False
        self._subscriber.push(self.number, frames)
        return True

    def stop(self) -> None:
        """End the subscription; frames that wait are withdrawn."""
        self._cursor.close()
        self._subscriber.withdraw(self.number)
