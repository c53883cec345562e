"""`tbot up`: everything on one machine, in the right order, and down again.

Up: address, paper exchange, Postgres, migrations, the process's parts, first administrator, first
account, HTTP. Down: the reverse, each step bounded in time. Whatever a crash left behind is picked
up by the next start: a surviving Postgres is adopted, an exchange ends with its parent, and the
first administrator and account are made under ids that were written down before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from time import monotonic
from typing import Final, Self
from uuid import UUID

import structlog

from tbot.auth import users
from tbot.auth.passwords import generated
from tbot.backup import refuse_half_restored
from tbot.boot import PAPER, Parts, paper_access, running
from tbot.child import ExchangeChild
from tbot.core.errors import TBotError
from tbot.core.ids import new_id
from tbot.core.refusals import Refused
from tbot.core.settings import Settings
from tbot.core.tasks import Tasks
from tbot.db.cluster import make_private, read_json, write_durably
from tbot.db.embedded import EmbeddedPostgres
from tbot.db.migrate import migrate
from tbot.journal.commands import system
from tbot.ledger.flow import open_account
from tbot.serving import address_of, bind, serve_http

ADMIN_NAME: Final = "admin"
ADMIN_FILE: Final = "admin.json"
API_FILE: Final = "api.json"
FIRST_DEPOSITS: Final = {"USDT": Decimal(100_000)}
_READY_TIMEOUT_S: Final = 30.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Started:
    """What the banner tells.

    Attributes:
        seconds: From the call to ready.
        new_password: Of an administrator that was made just now.
        unready: Parts that are still missing, with a few words why.
    """

    url: str
    exchange_url: str | None
    data_dir: Path
    seconds: float
    account_id: UUID | None
    new_password: str | None
    unready: dict[str, str]


class Stopping:
    """Turns SIGINT, SIGTERM and SIGHUP into a stop: of the start while it goes on, then of serving.

    A signal during the start cancels it, the first one afterwards sets `event`, and a second one
    cancels whatever the orderly stop is waiting for.
    """

    SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.serving = False
        self._task = asyncio.current_task()

    def __enter__(self) -> Self:
        """Begin to listen for signals."""
        loop = asyncio.get_running_loop()
        for number in self.SIGNALS:
            loop.add_signal_handler(number, self._heard)
        return self

    def __exit__(self, *_exc: object) -> None:
        """Leave signals to their defaults again."""
        loop = asyncio.get_running_loop()
        for number in self.SIGNALS:
            loop.remove_signal_handler(number)

    def _heard(self) -> None:
        if self._task is not None and (self.event.is_set() or not self.serving):
            self._task.cancel()
        self.event.set()


async def up(
    settings: Settings,
    say: Callable[[str], None],
    tell: Callable[[Started], None],
) -> None:
    """Start everything, serve until a signal comes, and stop everything.

    Args:
        say: Called with what goes on while the start takes long.
        tell: Called once, when it is ready.

    Raises:
        ConfigurationError: Something does not allow a start; the message says what to do.
            Everything that had been started is stopped again.
    """
    begun_s = monotonic()
    settings = settings.model_copy(update={"data_dir": settings.data_dir.absolute()})
    async with AsyncExitStack() as stack:
        stopping = stack.enter_context(Stopping())
        listener = stack.enter_context(contextlib.closing(bind(settings)))
        url = address_of(listener)
        make_private(settings.data_dir)
        tasks = Tasks("up")
        dsn, exchange_url = await _surroundings(stack, tasks, settings, say)
        access = paper_access(settings, settings.data_dir / "exchange")
        parts = await stack.enter_async_context(running(settings, dsn, access, url))
        password = await _first_administrator(parts)
        server = tasks.start(serve_http(parts, listener, stopping.event), "http")
        stack.push_async_callback(_wait_for, server, stopping)
        unready = await wait_until_ready(parts)
        account_id = None if "market" in unready else await _first_account(parts)
        with _published(settings.data_dir / API_FILE, {"url": url}):
            tell(
                Started(
                    url,
                    exchange_url,
                    settings.data_dir,
                    monotonic() - begun_s,
                    account_id,
                    password,
                    unready,
                )
            )
            stopping.serving = True
            await asyncio.shield(server)


async def _wait_for(server: asyncio.Task[None], stopping: Stopping) -> None:
    stopping.event.set()
    await asyncio.wait({server})


async def _surroundings(
    stack: AsyncExitStack, tasks: Tasks, settings: Settings, say: Callable[[str], None]
) -> tuple[str, str | None]:
    """Start the database and the exchange, side by side; answers the database's URL."""
    data_dir = settings.data_dir
    postgres = None
    if settings.database.url is None:
        postgres = EmbeddedPostgres(
            data_dir, start_timeout_s=settings.database.start_timeout_s, progress=say
        )
        postgres.claim()
        stack.push_async_callback(postgres.stop)
        refuse_half_restored(data_dir)
    child = None
    if settings.paper.enabled and not settings.paper.url:
        child = ExchangeChild(settings.exchange, data_dir / "exchange", data_dir / "exchange.log")
        stack.push_async_callback(child.stop)
        child.start()
    if postgres is not None:
        await postgres.start()
        owner, dsn = postgres.dsn("owner"), postgres.dsn("app")
    else:
        assert settings.database.url is not None
        owner = dsn = settings.database.url.get_secret_value()
    for migration in await migrate(owner):
        _log.info("migrated", version=migration.version, name=migration.name)
    if child is not None:
        await child.ready()
        tasks.start(child.supervise(), "exchange")
    if postgres is not None:
        tasks.start(postgres.supervise(), "postgres")
    # Stopped before the two themselves: nobody may bring them up again then.
    stack.push_async_callback(tasks.stop)
    access = paper_access(settings, data_dir / "exchange")
    return dsn, None if access is None else access.url


async def _first_administrator(parts: Parts) -> str | None:
    """Make the administrator where there is none; answers the password when it did.

    The password is on disk before the database knows it: a crash in between loses nothing.
    """
    if await users.admin_exists(parts.pool):
        return None
    path = parts.settings.data_dir / ADMIN_FILE
    known = read_json(path) or {}
    known.setdefault("username", ADMIN_NAME)
    known.setdefault("password", generated())
    known.setdefault("account_id", str(new_id()))
    write_durably(path, json.dumps(known, indent=1) + "\n")
    password = str(known["password"])
    made = await users.create_first_admin(
        parts.pool, parts.auth.passwords, password, str(known["username"])
    )
    return password if made else None


async def _first_account(parts: Parts) -> UUID | None:
    """Open the first administrator's paper account under the id that was noted for it."""
    known = read_json(parts.settings.data_dir / ADMIN_FILE) or {}
    if "account_id" not in known:
        return None
    account_id = UUID(str(known["account_id"]))
    if await parts.pool.fetchval("select 1 from accounts where id = $1", account_id):
        return account_id
    owner = await parts.pool.fetchval(
        "select id from users where username = $1", str(known.get("username", ADMIN_NAME))
    )
    if owner is None:
        return None
    try:
        outcome = await open_account(
            parts.orders.accounts,
            system("first account"),
            owner,
            "first",
            PAPER,
            FIRST_DEPOSITS,
            account_id=account_id,
        )
    except TBotError as error:  # the next start tries again
        _log.warning("first_account_not_opened", error=str(error))
        return None
    if isinstance(outcome, Refused):
        _log.warning("first_account_refused", reason=outcome.reason, detail=outcome.detail)
        return None
    return account_id


async def wait_until_ready(parts: Parts) -> dict[str, str]:
    """Wait, for 30 s at most, until every part is ready; answers what is not, by name."""
    deadline_s = monotonic() + _READY_TIMEOUT_S
    while (unready := await parts.unready()) and monotonic() < deadline_s:
        await asyncio.sleep(0.02)
    return unready


@contextlib.contextmanager
def _published(path: Path, content: dict[str, str]) -> Iterator[None]:
    """Tell the command line of this data directory where the API is, for as long as it runs."""
    write_durably(path, json.dumps(content) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def command_line(data_dir: Path) -> str:
    """How to call `tbot` for this data directory from a terminal in the current folder."""
    near = Path(".venv/bin/tbot")
    program = (
        str(near)
        if near.exists() and near.resolve().parent == Path(sys.prefix).resolve() / "bin"
        else f"{shlex.quote(sys.executable)} -m tbot"
    )
    if data_dir.absolute() == Path("data").absolute():
        return program
    return f"TBOT_DATA_DIR={shlex.quote(str(data_dir))} {program}"


def first_order(url: str, account_id: UUID, program: str) -> str:
    """A shell line that places a market order, to be pasted as it is."""
    body = {
        "account_id": str(account_id),
        "symbol": "BTC-USDT",
        "side": "buy",
        "type": "market",
        "quote_amount": "100",
    }
    return (
        f'curl -sS {url}/v1/orders -H "Authorization: Bearer $({program} user token)" '
        "-H 'Content-Type: application/json' -H 'Prefer: wait=5' "
        f"-d '{json.dumps(body, separators=(',', ':'))}'"
    )
