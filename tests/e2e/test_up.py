"""`tbot up`: started, used, stopped, started again, killed in every part, and misused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time

import pytest

from tbot.client import TBotClient, errors
from tbot.db.embedded import EmbeddedPostgres


async def test_first_start_first_order_clean_stop_second_start(installation, eventually) -> None:
    said = installation.start()
    admin = installation.admin
    assert admin["password"] in said
    for name in ("admin.json", "api.json", "postgres.json"):
        assert stat.S_IMODE((installation.data / name).stat().st_mode) == 0o600

    # The banner's line, pasted as it is.
    line = next(line for line in said.splitlines() if line.startswith("curl "))
    answer = await asyncio.to_thread(
        subprocess.run,
        ["/bin/sh", "-c", line],
        env=installation.environment,
        cwd=installation.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    order = json.loads(answer.stdout)
    assert order["state"] == "filled", order

    children = installation.pids()
    assert set(children) == {"api", "postgres", "exchange"}
    sessions = {os.getsid(pid) for pid in children.values()}
    assert len(sessions) == 3, "a terminal's Ctrl-C must reach only the first"
    assert installation.signal(signal.SIGINT) == 0
    assert not installation.pids()
    assert not (installation.data / "api.json").exists()

    again = installation.start()
    assert admin["password"] not in again, "it is shown once"
    async with installation.client() as client:
        found = await client.order(order["id"])
        assert found.state == "filled"
    checked = installation.run("verify")
    assert checked.returncode == 0, checked.stdout
    listed = installation.run("order", "list", "--json")
    assert order["id"] in listed.stdout
    assert installation.signal(signal.SIGTERM) == 0
    assert not installation.pids()


@pytest.mark.parametrize("victim", ["api", "postgres", "exchange"])
async def test_kill_9_of_a_part_while_orders_flow(installation, eventually, victim: str) -> None:
    installation.start()
    accepted: list[str] = []
    filled: list[str] = []
    stop = asyncio.Event()

    async def place() -> None:
        account = installation.admin["account_id"]
        async with installation.client() as client:
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    order = await asyncio.wait_for(
                        client.place(
                            account,
                            "BTC-USDT",
                            "buy" if number % 2 else "sell",
                            quantity="0.0002",
                            client_order_id=f"k-{number}",
                        ),
                        5,
                    )
                    accepted.append(str(order.id))
                    if not order.final:
                        order = await client.wait_filled(order.id, 5)
                    if order.state == "filled":
                        filled.append(str(order.id))
                except (errors.TBotError, TimeoutError):
                    await asyncio.sleep(0.05)

    placing = asyncio.create_task(place())
    await eventually(lambda: len(accepted) >= 20, timeout_s=30)
    os.kill(installation.pids()[victim], signal.SIGKILL)
    if victim == "api":
        assert installation.process is not None
        await asyncio.to_thread(installation.process.wait, 10)
        stop.set()
        placing.cancel()
        await asyncio.gather(placing, return_exceptions=True)
        installation.start()
    else:
        # Its supervisor brings it back, and orders flow again.
        before = len(filled)
        await eventually(lambda: len(filled) >= before + 20, timeout_s=60)
        stop.set()
        await placing
    async with installation.client() as client:

        async def settled() -> bool:
            return not [order async for order in client.orders(is_open=True)]

        await eventually(settled, timeout_s=90, interval_s=0.2)
        known = {str(order.id): order async for order in client.orders()}
        assert set(accepted) <= set(known), "an acknowledged order is lost"
        names = [order.client_order_id for order in known.values()]
        assert len(names) == len(set(names)), "an order was doubled"
    checked = installation.run("verify")
    assert checked.returncode == 0, checked.stdout
    assert installation.signal(signal.SIGINT) == 0
    assert not installation.pids()


async def test_kill_9_of_everything_at_once(installation, eventually) -> None:
    installation.start()
    placed = installation.run("order", "place", "buy", "BTC-USDT", "--quote-amount", "50", "--json")
    assert placed.returncode == 0, placed.stderr
    for pid in installation.pids().values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert installation.process is not None
    installation.process.wait(10)
    installation.start()
    found = installation.run("order", "get", json.loads(placed.stdout)["id"], "--json")
    assert json.loads(found.stdout)["state"] == "filled"
    assert installation.run("verify").returncode == 0


async def test_a_second_api_process_shares_database_and_venue(installation, eventually) -> None:
    refused = installation.run("serve")
    assert refused.returncode == 2 and "tbot up" in refused.stderr
    installation.start()
    url = installation.serve()
    admin = installation.admin
    async with (
        installation.client() as first,
        TBotClient(url, username=admin["username"], password=admin["password"]) as second,
    ):
        there = await second.place(admin["account_id"], "BTC-USDT", "buy", quote_amount="50")
        await second.wait_filled(there.id, 30)
        assert (await first.order(there.id)).state == "filled"
        here = await first.place(admin["account_id"], "BTC-USDT", "buy", quote_amount="50")
        await first.wait_filled(here.id, 30)
        assert (await second.order(here.id)).state == "filled"
    other = installation.others[0]
    other.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(other.wait, 30) == 0


async def test_a_database_of_ones_own(installation, postgres, empty_database) -> None:
    url = installation.environment["TBOT_DATABASE__URL"] = postgres.url(empty_database, "owner")
    refused = installation.run("up")
    assert refused.returncode == 2 and "fsync = off" in refused.stderr, refused.stderr
    assert url not in refused.stderr
    async with EmbeddedPostgres(installation.home / "own", die_with_parent=True) as own:
        # Its role owns the database; nothing of Postgres is in the data directory then.
        installation.environment["TBOT_DATABASE__URL"] = own.dsn("owner")
        use_own_database(installation)


def use_own_database(installation) -> None:
    """Start, trade, look and stop, with the database of the environment."""
    installation.start()
    assert set(installation.pids()) == {"api", "exchange"}
    assert not (installation.data / "postgres").exists()
    assert stat.S_IMODE(installation.data.stat().st_mode) == 0o700
    placed = installation.run("order", "place", "buy", "BTC-USDT", "--quote-amount", "50", "--json")
    assert json.loads(placed.stdout)["state"] == "filled", placed.stderr
    assert installation.run("verify").returncode == 0
    assert installation.run("migrate").returncode == 0
    assert installation.run("user", "list").returncode == 0
    assert installation.signal(signal.SIGINT) == 0


async def test_a_port_in_use_is_one_clear_line(installation) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        finished = installation.run("up", "--port", port)
        assert finished.returncode == 2
        line = finished.stderr
        assert f"127.0.0.1:{port} is in use" in line and "TBOT_HTTP__PORT" in line
        installation.environment["TBOT_EXCHANGE__PORT"] = port
        finished = installation.run("up")
        assert finished.returncode == 2
        assert "TBOT_EXCHANGE__PORT" in finished.stderr
    assert not installation.pids()


async def test_a_data_directory_in_use_is_one_clear_line(installation) -> None:
    installation.start()
    finished = installation.run("up")
    assert finished.returncode == 2
    assert "is in use by the T-Bot with process id" in finished.stderr
    assert "Traceback" not in finished.stderr


async def test_lost_data_is_one_clear_line(installation) -> None:
    installation.start()
    assert installation.signal(signal.SIGINT) == 0
    place = (installation.data / "postgres").resolve()
    kept = installation.home / "kept"
    shutil.move(place, kept)
    finished = installation.run("up")
    assert finished.returncode == 2
    assert "put it back" in finished.stderr and "tbot restore" in finished.stderr
    assert not (installation.data / "postgres").exists()
    shutil.move(kept, place)
    installation.start()


async def test_a_signal_during_the_start_stops_it_cleanly(installation) -> None:
    process = subprocess.Popen(  # noqa: ASYNC220 -- starting takes no time, waiting is elsewhere
        installation.command("up"),
        env=installation.environment,
        cwd=installation.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    installation.process = process
    deadline = time.monotonic() + 30
    # The one becomes the other, perhaps between two looks.
    made = [installation.data / name for name in ("postgres.init", "postgres")]
    while not any(path.exists() for path in made):
        assert time.monotonic() < deadline and process.poll() is None
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = await asyncio.to_thread(process.communicate, timeout=30)
    assert b"Traceback" not in said
    assert not installation.pids()
    installation.start()


async def test_backup_and_restore(installation) -> None:
    installation.start()
    placed = installation.run("order", "place", "buy", "BTC-USDT", "--quote-amount", "50", "--json")
    order_id = json.loads(placed.stdout)["id"]
    target = installation.home / "backup.tar"
    written = installation.run("backup", str(target))
    assert written.returncode == 0, written.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert installation.run("backup", str(target)).returncode == 2, "it replaces nothing"
    assert installation.signal(signal.SIGINT) == 0

    full = installation.run("restore", str(target))
    assert full.returncode == 2 and "is not empty" in full.stderr
    whole = target.read_bytes()
    (installation.home / "torn.tar").write_bytes(whole[: len(whole) // 2])
    changed = bytearray(whole)
    changed[whole.index(b"PGDMP") + 200] ^= 1
    (installation.home / "changed.tar").write_bytes(changed)
    shutil.move(installation.data, installation.home / "old")
    for name in ("torn.tar", "changed.tar"):
        refused = installation.run("restore", str(installation.home / name))
        assert refused.returncode == 2 and "Traceback" not in refused.stderr
        assert not installation.data.exists()

    restored = installation.run("restore", str(target))
    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert "Everything holds" in restored.stdout
    installation.start()
    found = installation.run("order", "get", order_id, "--json")
    assert json.loads(found.stdout)["state"] == "filled"


async def test_an_interrupted_restore_is_not_started(installation) -> None:
    installation.data.mkdir()
    (installation.data / "restoring").touch()
    finished = installation.run("up")
    assert finished.returncode == 2
    assert "run `tbot restore` again" in finished.stderr
    assert not installation.pids()


async def test_a_wrong_setting_names_its_variable(installation) -> None:
    installation.environment["TBOT_HTTP__PORT"] = "many"
    finished = installation.run("up")
    assert finished.returncode == 2
    assert "TBOT_HTTP__PORT" in finished.stderr and "Traceback" not in finished.stderr


async def test_wrong_usage_is_explained_and_help_is_there(installation) -> None:
    for arguments in (["nonsense"], ["up", "--port", "many"], ["order", "place"]):
        finished = installation.run(*arguments)
        assert finished.returncode == 2, finished.stderr
        assert "Usage" in finished.stderr and "Traceback" not in finished.stderr
    version = installation.run("--version")
    assert version.returncode == 0 and version.stdout.startswith("tbot ")
    for command in ("up", "serve", "exchange", "migrate", "user", "order", "doctor", "backup"):
        helped = installation.run(command, "--help")
        assert helped.returncode == 0 and len(helped.stdout) > 200


async def test_doctor_looks_at_what_runs(installation) -> None:
    before = installation.run("doctor")
    assert before.returncode == 0, before.stdout
    installation.start()
    finished = installation.run("doctor")
    assert finished.returncode == 0, finished.stdout
    assert "Chain heads" in finished.stdout and "BAD" not in finished.stdout


async def test_commands_without_a_server_say_so(installation) -> None:
    finished = installation.run("user", "list")
    assert finished.returncode == 2 and "make run" in finished.stderr
    installation.data.mkdir()
    (installation.data / "admin.json").write_text('{"username": "admin", "password": "x"}')
    installation.environment["TBOT_HTTP__PORT"] = "1"
    finished = installation.run("user", "token")
    assert finished.returncode == 3 and "make run" in finished.stderr
