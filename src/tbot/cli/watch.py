"""`tbot watch`: a market and one's own orders, live in the terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final, cast, get_args

import typer

from tbot.cli.account import Asking, client_of
from tbot.cli.console import run
from tbot.cli.watch_screen import View, plain, screen
from tbot.core.clock import stamp, utc_now
from tbot.core.errors import ConfigurationError
from tbot.core.money import text

if TYPE_CHECKING:
    from tbot.client import Candle, Order, TBotClient
    from tbot.client.streams import Stream

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_FRAME_S: Final = 0.1
_LINE_S: Final = 1.0
_HISTORY: Final = 200
_ORDERS: Final = 20
_BOOK_DEPTH: Final = 20
_QUIT_KEYS: Final = b"qQ\x03\x04"


def watch(
    symbol: Annotated[str, typer.Argument(help="As BTC-USDT.")] = "BTC-USDT",
    interval: Annotated[str, typer.Option(help="Of the candles: 1s to 1d.")] = "1m",
    account: Annotated[
        str | None,
        typer.Option(help="Whose orders to show; default: your oldest open trading account."),
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option(min=1, help="Print lines instead of drawing, and end after so many."),
    ] = None,
    username: Asking = None,
) -> None:
    """Ticker, book, candles and your orders, live. `q` or Ctrl-C ends it.

    Without a terminal it prints a line a second, and one for every candle that closes.
    """
    from tbot.client.candles import CandleInterval

    intervals = get_args(CandleInterval.__value__)
    if interval not in intervals:
        raise ConfigurationError(f"{interval!r} is no interval: there are {', '.join(intervals)}")
    run(_watch(symbol, interval, account, lines, username))


async def _watch(
    symbol: str, interval: str, account: str | None, lines: int | None, username: str | None
) -> None:
    draws = lines is None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    watcher = Watcher(View(symbol, interval), account)
    async with client_of(username) as client:
        ending = asyncio.Event()
        with _signals(ending.set):
            if draws:
                with _terminal(ending.set):
                    await watcher.follow(client, ending, watcher.draw)
            else:
                printer = Printer(lines, ending.set)
                watcher.on_candle = printer.candle
                watcher.on_order = printer.order
                await watcher.follow(client, ending, lambda: printer.run(watcher))


@contextmanager
def _signals(end: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and a polite kill are the ordinary end."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def _terminal(end: Callable[[], None]) -> Iterator[None]:
    """The alternate screen, and keys as they are pressed; all is as before when it ends."""
    import termios
    import tty

    loop = asyncio.get_running_loop()
    keys = sys.stdin.fileno() if sys.stdin.isatty() else None
    before = None
    if keys is not None:
        before = termios.tcgetattr(keys)
        tty.setcbreak(keys)

        def pressed() -> None:
            pressed_keys = os.read(keys, 64)
            if not pressed_keys or any(key in _QUIT_KEYS for key in pressed_keys):
                end()

        loop.add_reader(keys, pressed)
    sys.stdout.write(_ENTER)
    sys.stdout.flush()
    try:
        yield
    finally:
        if keys is not None and before is not None:
            loop.remove_reader(keys)
            termios.tcsetattr(keys, termios.TCSADRAIN, before)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


class Watcher:
    """Follows a market, and an account if there is one.

    Args:
        view: What it keeps current.
        account: None takes the user's oldest open trading account, and goes without where there is
            none.
    """

    def __init__(self, view: View, account: str | None) -> None:
        self.view = view
        self._account = account
        self._stream: Stream | None = None
        self._changed = asyncio.Event()
        self._orders_changed = asyncio.Event()
        self.on_candle: Callable[[Candle], None] = lambda candle: None
        self.on_order: Callable[[Order], None] = lambda order: None

    async def follow(
        self, client: TBotClient, ending: asyncio.Event, show: Callable[[], Any]
    ) -> None:
        """Follow until the end is wanted; what cannot be followed raises."""
        view = self.view
        if self._account is None:
            async for first in client.accounts(kind="trading", status="open"):
                self._account = str(first.id)
                break
        view.account = self._account
        async with client.stream() as stream:
            self._stream = stream
            works = [
                self._each(stream.ticker(view.symbol, 250), "ticker"),
                self._each(stream.status(view.symbol), "status"),
                self._each(stream.book(view.symbol, _BOOK_DEPTH, 250), "book"),
                self._candles(client, stream),
                show(),
            ]
            if self._account is not None:
                works += [self._entries(stream), self._orders(client)]
            tasks = {asyncio.ensure_future(work) for work in works}
            tasks.add(asyncio.ensure_future(ending.wait()))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            for task in done:
                task.result()

    async def _each(self, items: AsyncIterator[Any], name: str) -> None:
        async for item in items:
            setattr(self.view, name, item)
            self._changed.set()

    async def _candles(self, client: TBotClient, stream: Stream) -> None:
        view, interval = self.view, cast("Any", self.view.interval)
        following = stream.candles(view.symbol, interval)
        async for candle in client.candles.newest(view.symbol, interval, page=_HISTORY):
            view.put(candle)
            if len(view.candles) >= _HISTORY:
                break
        async for candle in following:
            known = view.candles.get(candle.start)
            view.put(candle)
            self._changed.set()
            if candle.closed and known is not None and not known.closed:
                self.on_candle(candle)

    async def _entries(self, stream: Stream) -> None:
        assert self._account is not None
        async for item in stream.account(self._account):
            if getattr(item, "kind", "order").startswith("order"):
                self._orders_changed.set()

    async def _orders(self, client: TBotClient) -> None:
        """Read the orders again whenever the journal tells of any; the newest and the open ones."""
        told: dict[Any, int] = {}
        while True:
            await self._orders_changed.wait()
            self._orders_changed.clear()
            found: dict[Any, Order] = {}
            for is_open in (True, None):
                async for order in client.orders(self._account, is_open=is_open):
                    found.setdefault(order.id, order)
                    if len(found) >= _ORDERS:
                        break
            for order in reversed(found.values()):
                if told and told.get(order.id, 0) < order.sequence:
                    self.on_order(order)
                told[order.id] = order.sequence
            told = {order_id: told[order_id] for order_id in found} or {None: 0}
            self.view.orders = list(found.values())
            self._changed.set()
            await asyncio.sleep(_FRAME_S)

    async def draw(self) -> None:
        """Draw the screen whenever something changed, also the terminal's size."""
        loop = asyncio.get_running_loop()
        with suppress(ValueError, AttributeError):
            loop.add_signal_handler(signal.SIGWINCH, self._changed.set)
        size = (0, 0)
        while True:
            self._changed.clear()
            self._note_connection()
            now = os.get_terminal_size(sys.stdout.fileno())
            rows = screen(self.view, now.columns, now.lines, colour="NO_COLOR" not in os.environ)
            clear = "\x1b[2J" if now != size else ""
            size = now
            body = "\x1b[K\r\n".join(rows)
            sys.stdout.write(f"{clear}\x1b[H{body}\x1b[K\x1b[J")
            sys.stdout.flush()
            await asyncio.sleep(_FRAME_S)
            with suppress(TimeoutError):  # that nothing comes any more is to be seen, too
                async with asyncio.timeout(_LINE_S):
                    await self._changed.wait()

    def _note_connection(self) -> None:
        """Say so while there is no connection, and why."""
        stream = self._stream
        lost = stream is not None and not stream.connected
        why = stream.last_loss if stream is not None else None
        self.view.note = f"connection lost ({why}), trying again" if lost else ""


class Printer:
    """Lines instead of a screen.

    Args:
        lines_max: After so many, `end` is called; None for no bound.
    """

    def __init__(self, lines_max: int | None, end: Callable[[], None]) -> None:
        self._left = lines_max
        self._end = end

    def _say(self, words: str) -> None:
        if self._left == 0:
            return
        sys.stdout.write(f"{stamp(utc_now())} {words}\n")
        sys.stdout.flush()
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._end()

    def candle(self, candle: Candle) -> None:
        """A candle closed."""
        figures = (candle.open, candle.high, candle.low, candle.close, candle.volume)
        doubt = "" if candle.complete else " (incomplete)"
        self._say(f"candle {stamp(candle.start)} {' '.join(map(text, figures))}{doubt}")

    def order(self, order: Order) -> None:
        """An order of one's own changed."""
        self._say(
            f"order {order.id} {order.side} {order.symbol} {order.state}"
            f" {text(order.filled_quantity)} filled"
        )

    async def run(self, watcher: Watcher) -> None:
        """A line for the market, every second in which it changed."""
        last = ""
        while True:
            line = plain(watcher.view)
            if line != last and watcher.view.ticker is not None:
                self._say(line)
                last = line
            await asyncio.sleep(_LINE_S)
