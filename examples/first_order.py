"""Place a first market order and look at what it did.

    python examples/first_order.py [SYMBOL QUOTE_AMOUNT]

Runs against `make run` as it is: it reads data/admin.json, or TBOT_URL, TBOT_USER and
TBOT_PASSWORD from the environment.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from tbot.client import Account, Refused, TBotClient


def credentials() -> dict[str, str]:
    """Address and login, from the environment or from what `make run` wrote."""
    if "TBOT_PASSWORD" in os.environ:
        return {
            "base_url": os.environ.get("TBOT_URL", "http://127.0.0.1:8000"),
            "username": os.environ.get("TBOT_USER", "admin"),
            "password": os.environ["TBOT_PASSWORD"],
        }
    folder = Path(os.environ.get("TBOT_DATA_DIR", "data"))
    if not (folder / "admin.json").exists():
        sys.exit(f"no {folder}/admin.json: start `make run`, or set TBOT_USER and TBOT_PASSWORD")
    known = {}
    for name in ("api.json", "admin.json"):  # the address, there while the server runs; the login
        if (folder / name).exists():
            known |= json.loads((folder / name).read_text())
    if "url" not in known:
        sys.exit("T-Bot is not running: start it with `make run`")
    return {"base_url": known["url"], "username": known["username"], "password": known["password"]}


async def main(symbol: str, quote_amount: str) -> None:
    """Buy for `quote_amount` at the market, then show order, fills, balances and position."""
    async with TBotClient(**credentials()) as client:
        mine = client.accounts(kind="trading", status="open")  # oldest first
        account: Account | None = await anext(mine, None)
        if account is None:
            account = await client.create_account("first steps", {"USDT": "10000"})
        ticker = await client.ticker(symbol)
        print(f"account {account.name} ({account.id})")
        print(f"{symbol}: bid {ticker.bid}, ask {ticker.ask}")

        try:
            order = await client.place(
                account.id, symbol, "buy", quote_amount=quote_amount, wait_s=10
            )
        except Refused as refused:
            sys.exit(f"refused: {refused}")
        if not order.final:
            order = await client.wait_filled(order.id)
        print(f"order {order.id}: {order.state}")
        print(f"  bought {order.filled_quantity} for {order.filled_quote}", end=" ")
        print(f"(average {order.average_price:.2f})" if order.average_price else "")

        async for fill in client.fills(account.id, order_id=order.id):
            print(f"  fill {fill.quantity} at {fill.price}, fee {fill.fee:f} {fill.fee_asset}")
        for balance in (await client.balances(account.id)).balances:
            print(f"balance {balance.total} {balance.asset} (held {balance.held})")
        for position in (await client.positions(account.id)).positions:
            if position.quantity:
                print(f"position {position.quantity} {position.symbol}, cost {position.cost}")


if __name__ == "__main__":
    asyncio.run(main(*(sys.argv[1:] or ["BTC-USDT", "25"])))
