"""The embedded server: first start, second start, and every way in which things were left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from tbot.core.errors import ConfigurationError, DataDirectoryError
from tbot.db import cluster
from tbot.db.access import require_durable, running_database
from tbot.db.cluster import FileLock
from tbot.db.embedded import EmbeddedPostgres
from tbot.db.placement import FALLBACK, remove_cluster_directory


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty directory that any user can reach."""
    directory = Path(tempfile.mkdtemp(prefix="tbot-tests-", dir="/tmp"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def made(private_dir: Path) -> Path:
    """A data directory with a made and cleanly stopped cluster, to be copied."""
    directory = private_dir / "made"

    async def make() -> None:
        async with EmbeddedPostgres(directory, die_with_parent=True) as server:
            connection = await asyncpg.connect(server.dsn("owner"))
            await connection.execute("create table kept (n int); insert into kept values (42)")
            await connection.execute("grant select on kept to tbot_app")
            await connection.close()

    asyncio.run(make())
    return directory


@pytest.fixture
def data_dir(home: Path, made: Path) -> Path:
    """A data directory of the test's own with a cluster in it."""
    target = home / "data"
    shutil.copytree(made, target, symlinks=True, ignore=shutil.ignore_patterns("run"))
    if os.geteuid() == 0:
        shutil.chown(target, os.geteuid())
        for path in [target / "postgres", *(target / "postgres").rglob("*")]:
            found = (made / path.relative_to(target)).lstat()
            os.chown(path, found.st_uid, found.st_gid)
    return target


@pytest.fixture
async def servers() -> AsyncIterator[list[EmbeddedPostgres]]:
    """Servers to stop after the test, last first."""
    started: list[EmbeddedPostgres] = []
    yield started
    for server in reversed(started):
        await server.stop()


def embedded(data_dir: Path, servers: list[EmbeddedPostgres]) -> EmbeddedPostgres:
    """A server that the test stops in any case, and that dies with it."""
    server = EmbeddedPostgres(data_dir, die_with_parent=True)
    servers.append(server)
    return server


def abandon(server: EmbeddedPostgres) -> int:
    """Forget a running server as `kill -9` of T-Bot would: locks gone, child alive."""
    pid = server.pid
    assert pid is not None
    server._forget()
    server._release()
    return pid


def reap(pid: int) -> None:
    """Collect the status of an abandoned server, unless the garbage collector was faster."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


async def kept(server: EmbeddedPostgres) -> int:
    """What the application reads from the table that must survive."""
    connection = await asyncpg.connect(server.dsn("app"))
    try:
        number: int = await connection.fetchval("select n from kept")
        return number
    finally:
        await connection.close()


async def test_a_first_start_makes_a_safe_cluster(home: Path, servers) -> None:
    data_dir = home / "some data"  # a blank in the path, and it does not exist yet
    server = embedded(data_dir, servers)
    await server.start()
    connection = await asyncpg.connect(server.dsn("superuser"))
    try:
        settings = dict(
            await connection.fetch(
                "select name, setting from pg_settings where name = any($1)",
                ["fsync", "full_page_writes", "synchronous_commit", "data_checksums"],
            )
        )
        assert set(settings.values()) == {"on"}
        assert await connection.fetchval("show listen_addresses") == ""
        methods = await connection.fetch("select distinct auth_method from pg_hba_file_rules")
        assert [row["auth_method"] for row in methods] == ["scram-sha-256"]
        locale = await connection.fetchrow(
            "select datlocprovider::text as provider, datlocale as name from pg_database "
            "where datname = 'tbot'"
        )
        assert tuple(locale) == ("b", "C.UTF-8")
        roles = await connection.fetch(
            "select rolname from pg_roles where rolsuper or rolcreaterole or rolcreatedb"
        )
        assert [row["rolname"] for row in roles] == ["postgres"]
    finally:
        await connection.close()
    for path in (data_dir / "credentials").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((data_dir / "postgres").stat().st_mode) == 0o700
    assert running_database(data_dir) == server.dsn("app")


async def test_a_wrong_password_is_refused_over_the_socket(data_dir: Path, servers) -> None:
    server = embedded(data_dir, servers)
    await server.start()
    wrong = server.dsn("superuser").replace(cluster.password_of(data_dir, "superuser"), "guess")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong)


async def test_a_second_start_reuses_the_data(data_dir: Path, servers) -> None:
    server = embedded(data_dir, servers)
    await server.start()
    assert await kept(server) == 42
    pid = server.pid
    await server.stop()
    await server.stop()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(DataDirectoryError, match="make run"):
        running_database(data_dir)


async def test_one_start_at_a_time(data_dir: Path, servers) -> None:
    await embedded(data_dir, servers).start()
    with pytest.raises(DataDirectoryError, match=f"in use by .* {os.getpid()}: stop that one"):
        await embedded(data_dir, servers).start()


async def test_a_survivor_is_adopted_and_can_be_stopped(data_dir: Path, servers) -> None:
    first = embedded(data_dir, servers)
    await first.start()
    pid = abandon(first)
    second = embedded(data_dir, servers)
    await second.start()
    assert second.adopted and second.pid == pid
    assert await kept(second) == 42
    await second.stop()
    reap(pid)
    assert not Path(f"/proc/{pid}").exists()


async def test_a_survivor_that_recovers_or_stops_is_waited_for(data_dir: Path, servers) -> None:
    first = embedded(data_dir, servers)
    await first.start()
    pid = abandon(first)
    os.kill(pid, signal.SIGINT)  # it is on its way out when the next start comes
    second = embedded(data_dir, servers)
    await second.start()
    assert await kept(second) == 42
    reap(pid)


@pytest.mark.parametrize("content", ["", "4", "{pid}\n", "{pid}\n/elsewhere\n1\n5432\n", "\0\0\0"])
async def test_a_stale_or_torn_pid_file_is_not_believed(
    data_dir: Path, servers, content: str
) -> None:
    # Its process id is in use again, by a process of the very user that Postgres runs as.
    server = embedded(data_dir, servers)
    owner = (data_dir / "postgres").stat()
    user = (owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None
    sleeper = await asyncio.to_thread(_sleeper, user)
    try:
        path = data_dir / "postgres" / "postmaster.pid"
        path.write_text(content.format(pid=sleeper.pid))
        os.chown(path, owner.st_uid, owner.st_gid)
        run = data_dir / "run"
        run.mkdir(mode=0o700)
        socket_lock = run / ".s.PGSQL.5432.lock"
        socket_lock.write_text(content.format(pid=sleeper.pid))
        for left in (run, socket_lock):
            os.chown(left, owner.st_uid, owner.st_gid)
        await server.start()
        assert not server.adopted
        assert await kept(server) == 42
    finally:
        sleeper.kill_session()
        await sleeper.wait()


def _sleeper(user: tuple[int, int] | None):
    from tbot.db.process import Process

    return Process.spawn(
        ["/bin/sleep", "60"],
        environment={},
        cwd=Path("/"),
        output=2,
        user=user,
        death_signal=signal.SIGKILL,
    )


async def test_kill_9_of_the_server_is_recovered_from_by_the_next_start(
    data_dir: Path, servers
) -> None:
    first = embedded(data_dir, servers)
    await first.start()
    connection = await asyncpg.connect(first.dsn("owner"))
    await connection.execute("insert into kept values (43)")
    pid = abandon(first)
    os.kill(pid, signal.SIGKILL)
    reap(pid)
    second = embedded(data_dir, servers)
    await second.start()
    assert not second.adopted
    reader = await asyncpg.connect(second.dsn("app"))
    assert await reader.fetchval("select count(*) from kept") == 2
    await reader.close()


async def test_the_supervisor_brings_a_killed_server_back(
    data_dir: Path, servers, eventually
) -> None:
    server = embedded(data_dir, servers)
    await server.start()
    first_pid = server.pid
    assert first_pid is not None
    supervisor = asyncio.create_task(server.supervise())
    try:
        os.kill(first_pid, signal.SIGKILL)

        async def answers() -> bool:
            try:
                return await kept(server) == 42 and server.pid not in (None, first_pid)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return False

        await eventually(answers, timeout_s=30)
    finally:
        supervisor.cancel()
        await asyncio.gather(supervisor, return_exceptions=True)


async def test_a_marker_without_data_is_refused(data_dir: Path, servers) -> None:
    (data_dir / "postgres").rename(data_dir / "elsewhere")
    with pytest.raises(DataDirectoryError, match=r"put it back, restore a backup"):
        await embedded(data_dir, servers).start()
    assert not (data_dir / "postgres").exists()


async def test_an_emptied_data_directory_is_refused(data_dir: Path, servers) -> None:
    shutil.rmtree(data_dir / "postgres")
    (data_dir / "postgres").mkdir()
    with pytest.raises(DataDirectoryError, match="restore a backup"):
        await embedded(data_dir, servers).start()
    (data_dir / "postgres.json").unlink()
    with pytest.raises(DataDirectoryError, match="holds no database"):
        await embedded(data_dir, servers).start()


async def test_another_cluster_than_the_markers_is_refused(data_dir: Path, servers) -> None:
    (data_dir / "postgres.json").write_text(json.dumps({"system_identifier": "1", "postgres": 18}))
    with pytest.raises(DataDirectoryError, match="not the database that"):
        await embedded(data_dir, servers).start()
    assert FileLock(data_dir / "postgres.alive").acquire(), "no server was left behind"


async def test_a_lost_marker_is_written_again(data_dir: Path, servers) -> None:
    before = (data_dir / "postgres.json").read_text()
    (data_dir / "postgres.json").unlink()
    await embedded(data_dir, servers).start()
    assert (data_dir / "postgres.json").read_text() == before


async def test_an_interrupted_first_start_begins_again(home: Path, servers) -> None:
    data_dir = home / "data"
    server = embedded(data_dir, servers)
    attempt = asyncio.create_task(server.start())
    while not (data_dir / "postgres.init" / "base").exists():
        assert not attempt.done()
        await asyncio.sleep(0)
    attempt.cancel()
    await asyncio.gather(attempt, return_exceptions=True)
    assert not (data_dir / "postgres.init").exists()
    (data_dir / "postgres.init").mkdir()  # what a kill -9 would have left
    (data_dir / "postgres.init" / "PG_VERSION").write_text("18")
    await embedded(data_dir, servers).start()
    assert not (data_dir / "postgres.init").exists()


async def test_another_major_version_is_refused(data_dir: Path, servers) -> None:
    (data_dir / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(DataDirectoryError, match="written by Postgres 17"):
        await embedded(data_dir, servers).start()


@pytest.mark.parametrize("name", ["fsync", "full_page_writes", "synchronous_commit"])
async def test_a_server_that_may_lose_orders_is_refused(data_dir: Path, servers, name: str) -> None:
    with (data_dir / "postgres" / "postgresql.conf").open("a") as file:
        file.write(f"\n{name} = off\n")
    with pytest.raises(ConfigurationError, match=f"{name} = off .*turn it on"):
        await embedded(data_dir, servers).start()
    assert FileLock(data_dir / "postgres.alive").acquire(), "no server was left behind"


async def test_a_role_that_may_lose_orders_is_refused(data_dir: Path, servers) -> None:
    server = embedded(data_dir, servers)
    await server.start()
    connection = await asyncpg.connect(server.dsn("superuser"))
    await require_durable(connection)
    await connection.execute("alter role tbot_app set synchronous_commit = 'off'")
    with pytest.raises(ConfigurationError, match="synchronous_commit = off"):
        await require_durable(connection)
    await connection.close()


async def test_a_broken_configuration_says_why(data_dir: Path, servers) -> None:
    with (data_dir / "postgres" / "postgresql.conf").open("a") as file:
        file.write("\nno_such_setting = 1\n")
    with pytest.raises(ConfigurationError, match="Postgres ended instead of starting"):
        await embedded(data_dir, servers).start()


async def test_lost_application_passwords_are_replaced(data_dir: Path, servers) -> None:
    (data_dir / "credentials" / "postgres-app").unlink()
    server = embedded(data_dir, servers)
    await server.start()
    assert await kept(server) == 42


async def test_a_lost_superuser_password_is_one_clear_line(data_dir: Path, servers) -> None:
    (data_dir / "credentials" / "postgres-superuser").unlink()
    with pytest.raises(DataDirectoryError, match=r"put .* back from a backup"):
        await embedded(data_dir, servers).start()
    (data_dir / "credentials" / "postgres-superuser").write_text("wrong\n")
    with pytest.raises(DataDirectoryError, match="refuses the password"):
        await embedded(data_dir, servers).start()


async def test_a_long_path_gets_a_short_socket(home: Path, servers) -> None:
    data_dir = home / ("d" * 90) / "data"
    data_dir.parent.mkdir(mode=0o711)
    data_dir.parent.chmod(0o711)
    server = embedded(data_dir, servers)
    await server.start()
    directory = Path(json.loads((data_dir / "postgres.socket.json").read_text())["directory"])
    assert not directory.is_relative_to(home)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    await server.stop()
    assert not directory.exists()
    await server.start()
    await server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")
async def test_root_below_a_closed_directory_uses_the_documented_place(home: Path, servers) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    data_dir = closed / "data"
    server = embedded(data_dir, servers)
    await server.start()
    place = (data_dir / "postgres").resolve()
    assert place.is_relative_to(FALLBACK)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert server.pid is not None and Path(f"/proc/{server.pid}").stat().st_uid != 0
    await server.stop()
    await server.start()
    await server.stop()
    remove_cluster_directory(data_dir / "postgres")
    assert not place.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_directory_of_somebody_else_is_one_clear_line(home: Path, servers) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(DataDirectoryError, match="cannot be made"):
        await embedded(closed / "data", servers).start()
