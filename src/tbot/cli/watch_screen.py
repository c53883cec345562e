"""What `tbot watch` draws: one screen of text from what is known. Pure.

Entry points: `View`, `screen`, `plain`.

Numbers are drawn, not counted: floating point is right here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from tbot.core.money import text

if TYPE_CHECKING:
    from tbot.client import Book, Candle, MarketStatus, Order, Ticker

GREEN: Final = "32"
RED: Final = "31"
YELLOW: Final = "33"
DIM: Final = "2"
BOLD: Final = "1"

BOOK_WIDTH: Final = 32
AXIS_WIDTH: Final = 12
WIDE: Final = 76
"""From this width on the book stands beside the chart, below it there is none."""
ORDERS_MAX: Final = 6
CANDLES_MAX: Final = 500

type Segment = tuple[str, str]
"""Text and its style: the parameters of an ANSI sequence, or nothing."""
type Line = list[Segment]


@dataclass(slots=True)
class View:
    """What is known of a market, and of one's own orders.

    Attributes:
        candles: By their starts.
        account: Whose orders are shown; None where there is no account.
        note: What the user should know besides, such as a lost connection.
    """

    symbol: str
    interval: str
    ticker: Ticker | None = None
    book: Book | None = None
    status: MarketStatus | None = None
    candles: dict[datetime, Candle] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    account: str | None = None
    note: str = ""

    def put(self, candle: Candle) -> None:
        """Take a candle; the oldest beyond the bound go."""
        self.candles[candle.start] = candle
        while len(self.candles) > CANDLES_MAX:
            del self.candles[min(self.candles)]


def screen(view: View, width: int, height: int, *, colour: bool = True) -> list[str]:
    """The screen, one string a row: at most `height` rows of at most `width` characters."""
    shown = view.orders[: max(0, min(ORDERS_MAX, height - 12))]
    bottom = [_order(order) for order in shown]
    if view.account is not None and height > 8:
        bottom.insert(0, [(f" orders of {view.account}", DIM)])
    middle_height = max(0, height - 3 - len(bottom))
    beside = width >= WIDE
    chart_width = width - BOOK_WIDTH - 1 if beside else width
    chart = _chart(view, chart_width, middle_height)
    rows = [_pad(line, chart_width) for line in chart]
    if beside:
        book = _book(view, middle_height)
        rows = [[*left, (" ", ""), *right] for left, right in zip(rows, book, strict=True)]
    lines = [*_head(view), *rows, *bottom, [(_foot(view), DIM)]]
    return [_render(line, width, colour) for line in lines[:height]]


def _head(view: View) -> list[Line]:
    ticker, status = view.ticker, view.status
    line: Line = [(f" {view.symbol} ", BOLD)]
    figures: Line = []
    if ticker is not None and ticker.last is not None:
        change = ""
        style = ""
        if ticker.open:
            percent = 100 * (float(ticker.last) / float(ticker.open) - 1)
            change, style = f" {percent:+.2f}%", GREEN if percent >= 0 else RED
        line.append((f" {text(ticker.last)}{change} ", style))
        for name in ("bid", "ask"):
            price = getattr(ticker, name)
            line.append((f" {name} {'–' if price is None else text(price)} ", ""))
        figures = [
            (f" high {_number(ticker.high)}  low {_number(ticker.low)}", DIM),
            (f"  volume {_number(ticker.volume)}  trades {ticker.trades}", DIM),
        ]
    if status is not None:
        for halt in status.halts:
            line.append((f" HALTED: {halt.reason} ", RED))
        if status.orders == "waiting":
            line.append((" orders wait ", YELLOW))
        if status.book != "live":
            line.append((" book rebuilding ", YELLOW))
    if (status is not None and status.stale) or (ticker is not None and ticker.stale):
        line.append((" STALE ", RED))
    return [line, figures]


def _number(value: Decimal | None) -> str:
    return "–" if value is None else text(value)


def _chart(view: View, width: int, height: int) -> list[Line]:
    """Candles, one a column, the newest at the right, with the prices beside them."""
    columns = width - AXIS_WIDTH
    if height < 2 or columns < 4:
        return [[] for _ in range(height)]
    candles = [view.candles[start] for start in sorted(view.candles)][-columns:]
    if not candles:
        waiting: Line = [(" waiting for candles …", DIM)]
        return [waiting, *([] for _ in range(height - 1))]
    high = max(float(candle.high) for candle in candles)
    low = min(float(candle.low) for candle in candles)
    span = (high - low) or high * 0.0001 or 1.0

    def row_of(price: Decimal) -> int:
        return min(height - 1, max(0, round((high - float(price)) / span * (height - 1))))

    cells = [[(" ", "")] * columns for _ in range(height)]
    first = columns - len(candles)
    for column, candle in enumerate(candles, first):
        style = GREEN if candle.close >= candle.open else RED
        if not candle.complete:
            style += f";{DIM}"
        for row in range(row_of(candle.high), row_of(candle.low) + 1):
            cells[row][column] = ("│", style)
        top, end = sorted((row_of(candle.open), row_of(candle.close)))
        for row in range(top, end + 1):
            cells[row][column] = ("█" if candle.open != candle.close else "─", style)
    digits = _digits(span)
    last_row = row_of(candles[-1].close)
    lines: list[Line] = []
    for row in range(height):
        price = high - span * row / (height - 1)
        label = f" {price:.{digits}f}" if row % 3 == 0 else ""
        style = DIM
        if row == last_row:
            label, style = f"◂{text(candles[-1].close)}", BOLD
        lines.append([*cells[row], (label[:AXIS_WIDTH].ljust(AXIS_WIDTH), style)])
    return lines


def _digits(span: float) -> int:
    """Decimals with which prices this far apart can be told apart."""
    digits = 0
    while span < 10 and digits < 8:
        span, digits = span * 10, digits + 1
    return digits


def _book(view: View, height: int) -> list[Line]:
    """Offers above, bids below, best prices in the middle."""
    book, lines = view.book, list[Line]()
    depth = max(0, (height - 1) // 2)
    if book is None or not depth:
        lines = [[(" waiting for the book …", DIM)]]
    else:
        asks, bids = book.asks(depth), book.bids(depth)
        largest = max((float(quantity) for _, quantity in [*asks, *bids]), default=1.0) or 1.0
        lines = [[] for _ in range(depth - len(asks))]
        lines += [_level(level, largest, RED) for level in reversed(asks)]
        spread = book.spread
        middle = f" spread {'–' if spread is None else text(spread)}"
        lines.append([(middle if book.synced else " not in sync", DIM if book.synced else YELLOW)])
        lines += [_level(level, largest, GREEN) for level in bids]
    lines = lines[:height]
    return [*lines, *([] for _ in range(height - len(lines)))]


def _level(level: tuple[Decimal, Decimal], largest: float, style: str) -> Line:
    price, quantity = level
    bar = "▪" * round(6 * float(quantity) / largest)
    return [(f" {text(price):>12}", style), (f" {text(quantity):>11}", ""), (f" {bar}", style)]


def _order(order: Order) -> Line:
    price = "market" if order.limit_price is None else f"at {text(order.limit_price)}"
    amount = order.quantity if order.quantity is not None else order.quote_amount
    style = GREEN if order.side == "buy" else RED
    words = f" {_number(amount)} {order.symbol} {price}: {order.state}"
    filled = f", {text(order.filled_quantity)} filled" if order.filled_quantity else ""
    return [(f" {order.side:<4}", style), (words + filled, DIM if order.final else "")]


def _foot(view: View) -> str:
    note = f" · {view.note}" if view.note else ""
    return f" q quits · {view.interval} candles{note}"


def _pad(line: Sequence[Segment], width: int) -> Line:
    """A line cut or filled to a width."""
    padded: Line = []
    left = width
    for words, style in line:
        padded.append((words[:left], style))
        left -= len(words[:left])
    if left > 0:
        padded.append((" " * left, ""))
    return padded


def _render(line: Sequence[Segment], width: int, colour: bool) -> str:
    """A line as text; neighbours of one style share a sequence."""
    pieces: list[str] = []
    current = ""
    left = width
    for words, style in line:
        part = _harmless(words)[:left]
        left -= len(part)
        if not part:
            continue
        if colour and style != current:
            pieces.append(f"\x1b[0;{style}m" if style else "\x1b[0m")
            current = style
        pieces.append(part)
    if current:
        pieces.append("\x1b[0m")
    return "".join(pieces)


def _harmless(words: str) -> str:
    """Text that no terminal takes for a command: reasons are written by people."""
    return "".join(character if character.isprintable() else "?" for character in words)


def plain(view: View) -> str:
    """The market in one line, for where there is no terminal."""
    parts = _render(_head(view)[0], 10_000, colour=False).split()
    return " ".join(parts)
