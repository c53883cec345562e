"""The embedded database's files: made once, marked, and never made again over lost ones.

Layout below the data directory, all of it readable by its owner alone:

    postgres/             the cluster, or a link to it (see `tbot.db.placement`)
    postgres.init/        a cluster being made; swept away at the next start
    postgres.json         the marker: which cluster belongs here. Marker without cluster: refuse
    postgres.lock         locked by the T-Bot that runs the server
    postgres.alive        locked by every process of the server, however its parent ended
    postgres.socket.json  where the running server's socket is
    postgres.log          what the server has to say; its predecessor in postgres.log.1
    credentials/postgres-{superuser,owner,app}   passwords
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from tbot.core.errors import ConfigurationError, DataDirectoryError
from tbot.db.placement import Runner, new_cluster_directory, remove_cluster_directory
from tbot.db.process import Process

RoleName = Literal["superuser", "owner", "app"]
USERS: Final[Mapping[RoleName, str]] = {
    "superuser": "postgres",
    "owner": "tbot_owner",
    "app": "tbot_app",
}
MAJOR: Final = 18

_HBA: Final = """\
# Written by T-Bot. The server listens on a private socket only, and everybody shows a password.
local all         all      scram-sha-256
local replication postgres scram-sha-256
"""

# What a user may tune in postgresql.conf; what must hold is on the server's command line.
_TUNABLE: Final = {
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "min_wal_size": "80MB",
    "max_wal_senders": "4",
    "io_workers": "1",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "log_checkpoints": "off",
    "log_startup_progress_interval": "1s",
    "log_line_prefix": "%m [%p] ",
}


class FileLock:
    """An advisory lock on a file that the kernel drops when the last holder of it is gone.

    A child that inherits `descriptor` holds the lock too, for as long as it or one of its own
    children lives: proof of life that needs no process id.
    """

    __slots__ = ("descriptor", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1

    def acquire(self) -> bool:
        """Take the lock at once, or return False because somebody has it."""
        if self.descriptor >= 0:
            return True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self.descriptor = descriptor
        return True

    def note_holder(self) -> None:
        """Write our process id into the file, for messages only."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{os.getpid()}\n".encode(), 0)

    def holder(self) -> str:
        """Who wrote its process id last: for messages only."""
        try:
            return self.path.read_text().strip() or "unknown"
        except OSError:
            return "unknown"

    def release(self) -> None:
        """Give our hold back; a child that inherited the lock keeps it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def password_of(data_dir: Path, role: RoleName, *, create: bool = False) -> str:
    """A database role's password.

    Raises:
        DataDirectoryError: There is none, or it cannot be read.
    """
    path = data_dir / "credentials" / f"postgres-{role}"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        if not create:
            raise DataDirectoryError(
                f"the database's password is missing: put {path} back from a backup"
            ) from None
    except PermissionError:
        raise DataDirectoryError(
            f"{path} cannot be read: start T-Bot as the owner of {data_dir}"
        ) from None
    path.parent.mkdir(mode=0o700, exist_ok=True)
    password = secrets.token_urlsafe(32)
    write_durably(path, password + "\n")
    return password


def write_durably(path: Path, content: str) -> None:
    """Replace a file so that a crash leaves the old or the new content, readable by us alone."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the directory's entries survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private(data_dir: Path) -> None:
    """Make the data directory where it is missing, readable by its owner alone.

    Raises:
        DataDirectoryError: It cannot be made or written to.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataDirectoryError(
            f"the data directory {data_dir} cannot be made ({error.strerror}): "
            "choose another with TBOT_DATA_DIR"
        ) from None
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        raise DataDirectoryError(
            f"the data directory {data_dir} is not writable for this user: start T-Bot as its "
            "owner, or choose another with TBOT_DATA_DIR"
        )


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON object of ours; None where there is no file.

    Raises:
        DataDirectoryError: The file is not what we wrote.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataDirectoryError(
            f"{path} cannot be read ({error}): put it back from a backup"
        ) from None
    if not isinstance(found, dict):
        raise DataDirectoryError(f"{path} is not what T-Bot wrote: put it back from a backup")
    return found


def check_cluster(data_dir: Path) -> bool:
    """Whether a cluster is there, after making sure that none is missing.

    Raises:
        DataDirectoryError: The marker says a database belongs here and there is none, or it is of
            another Postgres version. Nothing was changed.
    """
    cluster = data_dir / "postgres"
    marker = read_json(data_dir / "postgres.json")
    try:
        found = (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        if marker is not None:
            raise DataDirectoryError(
                f"{data_dir / 'postgres.json'} says that a database belongs in {cluster}, but it "
                "is not there: put it back, restore a backup with `tbot restore` into an empty "
                "data directory, or remove the marker to give up that ledger for good"
            ) from None
        if cluster.is_symlink() or cluster.exists():
            raise DataDirectoryError(
                f"{cluster} is there but holds no database: put the database back or move it away"
            ) from None
        return False
    if found != str(MAJOR):
        raise DataDirectoryError(
            f"{cluster} was written by Postgres {found}, and this T-Bot brings Postgres {MAJOR}: "
            "use the T-Bot that wrote it for a backup, and restore that into an empty directory"
        )
    return True


def check_marker(data_dir: Path, system_identifier: str) -> None:
    """Compare the running cluster with the marker, or write the marker of a new cluster.

    Raises:
        DataDirectoryError: Another cluster belongs here.
    """
    path = data_dir / "postgres.json"
    marker = read_json(path)
    if marker is None:
        content = {"system_identifier": system_identifier, "postgres": MAJOR}
        write_durably(path, json.dumps(content) + "\n")
    elif marker.get("system_identifier") != system_identifier:
        raise DataDirectoryError(
            f"{data_dir / 'postgres'} is not the database that {path} names: put the right one back"
        )


async def make_cluster(data_dir: Path, runner: Runner, programs: Path, alive: FileLock) -> None:
    """Make a new cluster aside and move it into place whole.

    Args:
        data_dir: The data directory; the caller holds its lock.
        runner: Who will own the cluster.
        programs: Directory of `initdb`.
        alive: Held; `initdb` inherits it, so that one that outlives us is waited for.

    Raises:
        ConfigurationError: `initdb` failed; the message has its reason. Nothing is left behind.
    """
    entry = data_dir / "postgres.init"
    remove_cluster_directory(entry)
    real = new_cluster_directory(data_dir, entry.name, runner)
    password = password_of(data_dir, "superuser", create=True)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as secret:
        secret.write(password.encode() + b"\n")
        secret.flush()
        secret.seek(0)
        if runner.initdb_user is not None:
            os.chown(real, *runner.initdb_user)
            os.fchown(secret.fileno(), *runner.initdb_user)  # it opens /dev/stdin by name
        process = Process.spawn(
            _initdb_arguments(programs, real),
            environment=environment(),
            cwd=Path("/"),
            output=output.fileno(),
            user=runner.initdb_user,
            stdin=secret.fileno(),
            inherit=(alive.descriptor,),
        )
        try:
            await process.wait()
        except asyncio.CancelledError:
            process.kill_session()
            remove_cluster_directory(entry)
            raise
        finally:
            process.close()
        if process.returncode != 0:
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
            remove_cluster_directory(entry)
            why = next((line for line in said if "error" in line or "FATAL" in line), said[-1:])
            raise ConfigurationError(f"the database could not be made in {real}: {why}")
    (real / "pg_hba.conf").write_text(_HBA)
    if runner.user is not None and runner.user != runner.initdb_user:
        for path in [real, *real.rglob("*")]:
            runner.own(path)
    entry.rename(data_dir / "postgres")
    sync_directory(data_dir)


def _initdb_arguments(programs: Path, directory: Path) -> list[str]:
    arguments = [
        str(programs / "initdb"),
        f"--pgdata={directory}",
        f"--username={USERS['superuser']}",
        "--pwfile=/dev/stdin",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--data-checksums",
        "--no-instructions",
    ]
    return arguments + [f"--set={name}={value}" for name, value in _TUNABLE.items()]


def environment() -> dict[str, str]:
    """The environment of Postgres and its tools: nothing of ours, no `PG*` surprises."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """What Postgres stores for a password (RFC 5802), so that no statement ever carries it.

    Args:
        password: ASCII, so that SASLprep changes nothing.
        salt: 16 bytes; None makes new ones.
    """
    salt = secrets.token_bytes(16) if salt is None else salt
    iterations = 4096
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored = base64.b64encode(hashlib.sha256(client).digest()).decode()
    server = base64.b64encode(hmac.digest(salted, b"Server Key", "sha256")).decode()
    return f"SCRAM-SHA-256${iterations}:{base64.b64encode(salt).decode()}${stored}:{server}"


def verifier_fits(verifier: str | None, password: str) -> bool:
    """Whether a stored verifier was made from this password."""
    try:
        salt = base64.b64decode((verifier or "").split("$")[1].split(":")[1])
    except (IndexError, ValueError):
        return False
    return hmac.compare_digest(scram_verifier(password, salt), verifier or "")
