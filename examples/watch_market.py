"""Watch a market live: trades, best prices and a book that is kept current.

    python examples/watch_market.py [SYMBOL] [--seconds N]

Runs against `make run` as it is; see first_order.py for where it finds the login. Restart the
server while it runs: it comes back by itself and says what it missed.
"""

import argparse
import asyncio
import contextlib

from first_order import credentials

from tbot.client import Gap, Stream, TBotClient


def say_gap(gap: Gap) -> None:
    """Public data that was missed is told, never hidden."""
    print(f"-- missed on {gap.channel}: {gap.why}")


async def show_trades(stream: Stream, symbol: str) -> None:
    """Every trade, as it happens."""
    async for trade in stream.trades(symbol):
        print(f"{trade.at:%H:%M:%S.%f} {trade.side:4} {trade.quantity} at {trade.price}")


async def show_book(stream: Stream, symbol: str) -> None:
    """Best prices and how much stands behind them, once a second."""
    async for book in stream.book(symbol, depth=20, interval_ms=1000):
        bids = sum(quantity for _, quantity in book.bids(5))
        asks = sum(quantity for _, quantity in book.asks(5))
        print(f"{symbol} {book.best_bid} / {book.best_ask}  top five {bids} / {asks}")


async def main(symbol: str, seconds: float | None) -> None:
    """Show both until Ctrl-C, or for so many seconds."""
    async with TBotClient(**credentials()) as client, client.stream(on_gap=say_gap) as stream:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                tasks.create_task(show_trades(stream, symbol))
                tasks.create_task(show_book(stream, symbol))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("symbol", nargs="?", default="BTC-USDT")
    parser.add_argument("--seconds", type=float, help="stop after so many seconds")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(arguments.symbol, arguments.seconds))
