"""The Python SDK: orders that cannot double, streams that resume.

It stands alone: it imports nothing of the server, only httpx, websockets and msgspec.

    async with TBotClient("http://127.0.0.1:8000", username="ann", password="…") as client:
        order = await client.place(account_id, "BTC-USDT", "buy", quote_amount="25", wait_s=10)
        async with client.stream() as stream:
            async for trade in stream.trades("BTC-USDT"):
                print(trade.price, trade.quantity)
"""

from tbot.client.api import TBotClient
from tbot.client.book import Book
from tbot.client.errors import (
    AuthError,
    NotFound,
    OutcomeUnknown,
    ProtocolError,
    Refused,
    StreamClosed,
    TBotError,
    Unavailable,
)
from tbot.client.events import EventStream
from tbot.client.models import (
    Account,
    AccountSnapshot,
    AssetAmount,
    Balance,
    Balances,
    BestPrices,
    BookSnapshot,
    Candle,
    Entry,
    Equity,
    Fill,
    Gap,
    Halt,
    Instrument,
    Limits,
    MarketStatus,
    Order,
    Position,
    Positions,
    Ticker,
    Ticket,
    Trade,
    User,
    ValuedAmount,
)
from tbot.client.ordering import NewOrder
from tbot.client.payments import Delivery, Payment, Webhook
from tbot.client.statements import Movement, StatementEnds
from tbot.client.staying import Timing
from tbot.client.streams import Stream
from tbot.client.subscription import Subscription
from tbot.client.switches import Switch, SwitchTurn
from tbot.client.tokens import TicketKeeper
from tbot.client.transfers import NewTransfer, Transfer, TransferResult

__all__ = [
    "Account",
    "AccountSnapshot",
    "AssetAmount",
    "AuthError",
    "Balance",
    "Balances",
    "BestPrices",
    "Book",
    "BookSnapshot",
    "Candle",
    "Delivery",
    "Entry",
    "Equity",
    "EventStream",
    "Fill",
    "Gap",
    "Halt",
    "Instrument",
    "Limits",
    "MarketStatus",
    "Movement",
    "NewOrder",
    "NewTransfer",
    "NotFound",
    "Order",
    "OutcomeUnknown",
    "Payment",
    "Position",
    "Positions",
    "ProtocolError",
    "Refused",
    "StatementEnds",
    "Stream",
    "StreamClosed",
    "Subscription",
    "Switch",
    "SwitchTurn",
    "TBotClient",
    "TBotError",
    "Ticker",
    "Ticket",
    "TicketKeeper",
    "Timing",
    "Trade",
    "Transfer",
    "TransferResult",
    "Unavailable",
    "User",
    "ValuedAmount",
    "Webhook",
]
