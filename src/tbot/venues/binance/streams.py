"""Public market streams over one combined connection, reconnecting by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec
import structlog
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from tbot.core.errors import VenueNotSent
from tbot.venues.backoff import FullJitter
from tbot.venues.base import Instrument, MarketEvent, StreamGap
from tbot.venues.binance.connection import (
    OPEN_TIMEOUT_S,
    PING_INTERVAL_S,
    PING_TIMEOUT_S,
)
from tbot.venues.binance.market_wire import (
    STREAMS_PER_INSTRUMENT,
    market_event,
    stream_names,
)
from tbot.venues.budgets import Priority
from tbot.venues.governor import Governor

_log = structlog.get_logger(__name__)
_STREAMS_MAX: Final = 1024
INSTRUMENTS_MAX: Final = _STREAMS_MAX // STREAMS_PER_INSTRUMENT
_AGE_S_MAX: Final = 23.5 * 3600
_decode = msgspec.json.Decoder().decode


async def market_events(
    stream_url: str, instruments: Sequence[Instrument], governor: Governor
) -> AsyncIterator[MarketEvent]:
    """Depth, trades and best prices for ever; close the iterator to end the connection.

    The connection reads no faster than the caller takes: nothing is dropped or piled up here.

    Args:
        stream_url: As `ws://127.0.0.1:8100/stream`.
        instruments: At most `INSTRUMENTS_MAX` for one connection.
        governor: Keeps the budget of new connections.
    """
    if len(instruments) > INSTRUMENTS_MAX:
        raise ValueError(f"one connection carries at most {INSTRUMENTS_MAX} instruments")
    url = f"{stream_url}?streams={'/'.join(stream_names(instruments))}"
    backoff = FullJitter()
    while True:
        why = "ended"
        try:
            permit = await governor.take({"connections:5m": 1}, Priority.QUERY)
            permit.settle()
            async with connect(
                url,
                open_timeout=OPEN_TIMEOUT_S,
                ping_interval=PING_INTERVAL_S,
                ping_timeout=PING_TIMEOUT_S,
                close_timeout=1.0,
                max_queue=1024,
                compression=None,
                proxy=None,
            ) as socket:
                _log.info("venue_market_open", url=stream_url, instruments=len(instruments))
                yield StreamGap("connected")
                opened_s = asyncio.get_running_loop().time()
                async for message in socket:
                    frame = _decode(message)
                    if "stream" not in frame:
                        if frame.get("e") == "serverShutdown":
                            why = "announced shutdown"
                            break
                        continue
                    event = market_event(frame)
                    if event is not None:
                        backoff.reset()
                        yield event
                    if asyncio.get_running_loop().time() - opened_s > _AGE_S_MAX:
                        why = "renewed before the venue's cut"
                        break
        except (OSError, TimeoutError, WebSocketException, VenueNotSent) as error:
            why = type(error).__name__
        except (msgspec.DecodeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
            why = f"unreadable message: {type(error).__name__}: {error}"[:200]
        _log.warning("venue_market_closed", url=stream_url, why=why)
        await asyncio.sleep(backoff.next_s())
