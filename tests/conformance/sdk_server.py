"""A deliberately nasty server, to run a client of the stream against: any client.

    python tests/conformance/sdk_server.py [--host 127.0.0.1] [--port 8600] [--list]

`docs/sdk-conformance.md` tells how to use it. It needs nothing but Python.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent))

import sdk_wire as wire
from sdk_core import Run, Session
from sdk_scenarios import SCENARIOS, Scenario
from sdk_truth import ACCOUNT_ID, SYMBOL

USER: Final = {"username": "nasty", "password": "nasty"}
RUNS_MAX: Final = 1000


class NastyServer:
    """Runs of scenarios, each under a path of its own.

    Args:
        url: Where it can be reached.
    """

    def __init__(self) -> None:
        self.url = ""
        self._runs: dict[str, Run] = {}
        self._numbers = itertools.count(1)
        self._connections: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Cut every connection."""
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Begin a connection."""
        task = asyncio.create_task(self.handle(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        line = wire.Wire(reader, writer)
        try:
            while await self._answer(line, await line.request()):
                pass
        except (wire.Gone, OSError):
            pass
        finally:
            await line.end()

    async def _answer(self, line: wire.Wire, request: wire.Request) -> bool:
        """Answer a request; whether the connection may have another."""
        _, first, *rest = request.path.split("/")
        if first == "scenarios":
            await self._scenarios(line, request, rest)
            return True
        run = self._runs.get(rest[0]) if first == "run" and rest else None
        if run is None:
            await line.answer(404, {"code": "not_found"})
            return True
        path = "/".join(rest[1:])
        if path == "report":
            faults = run.verdict(request.json())
            await line.answer(200, {"number": run.number, "pass": not faults, "faults": faults})
            return True
        if path in ("v1/stream", "v1/events"):
            await self._stream(run, line, request)
            return False
        if path in ("v1/token", "v1/token/refresh"):
            return await self._token(run, line, request)
        if path == "v1/token/revoke":
            await line.answer(204)
        else:
            await line.answer(404, {"code": "not_found", "status": 404, "detail": "no such thing"})
        return True

    async def _scenarios(self, line: wire.Wire, request: wire.Request, rest: list[str]) -> None:
        if not rest:
            await line.answer(200, {"scenarios": [described(one) for one in SCENARIOS.values()]})
            return
        scenario = SCENARIOS.get(int(rest[0]) if rest[0].isdecimal() else -1)
        if scenario is None or request.method != "POST":
            await line.answer(404, {"code": "not_found"})
            return
        seed = int(request.json().get("seed", 1))
        number = str(next(self._numbers))
        run = self._runs[number] = Run(scenario.number, scenario.plan, seed)
        for old in list(self._runs)[:-RUNS_MAX]:
            del self._runs[old]
        task = {"url": f"{self.url}/run/{number}", "report": f"{self.url}/run/{number}/report"}
        await line.answer(201, {**described(scenario), **task, "seed": seed, **wanted(run)})

    async def _token(self, run: Run, line: wire.Wire, request: wire.Request) -> bool:
        run.logins += 1
        session = Session(run, line, request)
        if run.plan.login is not None and await run.plan.login(session):
            return True
        token = f"token-{len(run.tokens) + 1}"
        run.tokens[token] = time.monotonic() + run.plan.token_s
        pair: dict[str, Any] = {"access_token": token, "token_type": "Bearer"}
        pair |= {"expires_in": run.plan.token_s, "refresh_token": secrets.token_hex(8)}
        await line.answer(200, pair)
        return True

    async def _stream(self, run: Run, line: wire.Wire, request: wire.Request) -> None:
        run.connections += 1
        run.begins_anew()
        session = Session(run, line, request)
        session.events = request.path.endswith("events")
        if session.events:
            run.shown.append(request.headers.get("authorization", "").removeprefix("Bearer "))
        try:
            if run.plan.meet is not None and await run.plan.meet(session):
                return
            if session.events:
                await line.events()
            else:
                offered = request.headers.get("sec-websocket-protocol", "")
                if "tbot.v1.json" not in [one.strip() for one in offered.split(",")]:
                    run.fault("the client did not offer tbot.v1.json")
                await line.upgrade(request, "tbot.v1.json")
            await session.serve()
        except (wire.Gone, OSError):
            raise
        except Exception as error:
            run.fault(f"not the client's fault: {error!r}")
            raise
        finally:
            run.ends()
            if line.unmasked:
                run.fault("frames without a mask")


def rows() -> list[str]:
    """The scenarios as rows of a table; close codes are told together."""
    return [f"| {one.number} | {one.about} |" for one in SCENARIOS.values() if one.number < 10_000]


def described(scenario: Scenario) -> dict[str, Any]:
    """A scenario as the list has it."""
    plan = scenario.plan
    return {
        "number": scenario.number,
        "about": scenario.about,
        "transport": plan.transport,
        "seconds": scenario.seconds,
    }


def wanted(run: Run) -> dict[str, Any]:
    """What a client has to do, and what has to come of it."""
    plan = run.plan
    places = {
        name: {"account_id": ACCOUNT_ID} if truth.private else {"symbol": SYMBOL}
        for name, truth in run.truths.items()
    }
    more = {"book": {"depth": 0}}
    least, most = plan.connections
    return {
        "credentials": USER,
        "subscribe": [
            {"channel": name, **place, **more.get(name, {})} for name, place in places.items()
        ],
        "orders": [
            {
                "account_id": ACCOUNT_ID,
                "symbol": SYMBOL,
                "side": "buy",
                "type": "limit",
                "quantity": "0.1",
                "limit_price": "90",
                "client_order_id": f"order-{index}",
            }
            for index in range(plan.orders)
        ],
        "expect": {
            "ended": None if plan.ended is None else {"codes": list(plan.ended)},
            "last": {name: truth.last() for name, truth in run.truths.items()},
            "gaps": plan.gaps,
            "orders": list(plan.order_codes) if plan.orders else [],
            "connections": {"least": least, "most": most},
            "pause_s": plan.pause_s,
        },
    }


@contextlib.asynccontextmanager
async def serving(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[NastyServer]:
    """A server that runs."""
    nasty = NastyServer()
    server = await asyncio.start_server(nasty.accept, host, port)
    nasty.url = f"http://{host}:{server.sockets[0].getsockname()[1]}"
    try:
        yield nasty
    finally:
        server.close()
        await nasty.stop()


async def main(host: str, port: int) -> None:
    """Serve until interrupted."""
    async with serving(host, port) as nasty:
        print(json.dumps({"url": nasty.url, "scenarios": len(SCENARIOS)}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="show the scenarios and end")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(rows()))
    else:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(main(arguments.host, arguments.port))
