"""Backups: the database, the paper exchange and the first login in one file with checksums.

The database part is one consistent snapshot. The exchange's files are copied after it, so they
know everything that the ledger knows; what happened in between is theirs alone, and reconciliation
finds it when both are back. For a backup without that gap, stop T-Bot first.

The file is a tar archive: `manifest.json`, then the files that it names. It holds passwords and
API keys, and is readable by its owner only.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

import structlog

from tbot import __version__
from tbot.core.clock import utc_now
from tbot.core.errors import ConfigurationError, DataDirectoryError
from tbot.core.settings import Settings
from tbot.db.access import running_database
from tbot.db.cluster import RoleName, environment, sync_directory
from tbot.db.embedded import EmbeddedPostgres
from tbot.db.migrate import migrations
from tbot.db.placement import binaries_for, runner_for

FORMAT: Final = 1
DUMP: Final = "database.dump"
RESTORING: Final = "restoring"
"""A file in the data directory while a restore is under way; a start refuses next to it."""

_MANIFEST: Final = "manifest.json"
_SINGLE_FILES: Final = ("admin.json",)
_CHUNK_BYTES: Final = 1 << 20
_MANIFEST_BYTES_MAX: Final = 1 << 20

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a backup holds.

    Attributes:
        schema: Number of the last migration in it.
    """

    path: Path
    files: int
    size_bytes: int
    schema: int


@asynccontextmanager
async def database_at_hand(settings: Settings, role: RoleName) -> AsyncIterator[str]:
    """URL of the database, which is started for as long as the context lasts if it does not run.

    Raises:
        ConfigurationError: There is no database, or it cannot be started.
    """
    if settings.database.url is not None:
        yield settings.database.url.get_secret_value()
        return
    try:
        url = running_database(settings.data_dir, role)
    except DataDirectoryError:
        if not (settings.data_dir / "postgres").exists():
            raise
        refuse_half_restored(settings.data_dir)
        server = EmbeddedPostgres(
            settings.data_dir, start_timeout_s=settings.database.start_timeout_s
        )
        async with server:
            yield server.dsn(role)
    else:
        yield url


def refuse_half_restored(data_dir: Path) -> None:
    """Stop a start on what an interrupted restore left.

    Raises:
        DataDirectoryError: A restore did not end.
    """
    if (data_dir / RESTORING).exists():
        raise DataDirectoryError(
            f"a restore into {data_dir} was interrupted and is incomplete: remove that "
            "directory and run `tbot restore` again"
        )


async def backup(settings: Settings, target: Path) -> Summary:
    """Write a backup.

    Args:
        target: The file to write; it appears only when it is complete.

    Raises:
        ConfigurationError: It exists already, or the dump failed; nothing is left behind.
    """
    if target.exists():
        raise ConfigurationError(f"{target} exists already: choose another name")
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no directory {target.parent}: make it first")
    with tempfile.TemporaryDirectory(prefix=".tbot-backup-", dir=target.parent) as name:
        work = Path(name)
        async with database_at_hand(settings, "owner") as url:
            await _run_tool("pg_dump", settings, ["--format=custom", f"--file={work / DUMP}", url])
        files = {DUMP: work / DUMP}
        for path in _exchange_files(settings.data_dir):
            copy = work / "exchange" / path.name
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
            files[f"exchange/{path.name}"] = copy
        for single in _SINGLE_FILES:
            if (settings.data_dir / single).exists():
                shutil.copyfile(settings.data_dir / single, work / single)
                files[single] = work / single
        schema = len(migrations())
        manifest = {
            "format": FORMAT,
            "tbot": __version__,
            "schema": schema,
            "made_at": utc_now().isoformat(),
            "files": {
                entry: {"sha256": _digest(path), "size_bytes": path.stat().st_size}
                for entry, path in files.items()
            },
        }
        complete = work / "complete.tar"
        _pack(complete, manifest, files)
        os.link(complete, target)  # unlike a rename, this never replaces a file
        sync_directory(target.parent)
    return Summary(target, len(files), target.stat().st_size, schema)


def _exchange_files(data_dir: Path) -> list[Path]:
    directory = data_dir / "exchange"
    if not directory.is_dir():
        return []
    return [path for path in sorted(directory.iterdir()) if path.is_file() and path.name != "lock"]


def _pack(path: Path, manifest: dict[str, Any], files: dict[str, Path]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as raw:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
            text = json.dumps(manifest, indent=1).encode()
            first = tarfile.TarInfo(_MANIFEST)
            first.size, first.mode = len(text), 0o600
            archive.addfile(first, io.BytesIO(text))
            for name, source in files.items():
                archive.add(source, name, filter=_anonymous)
        raw.flush()
        os.fsync(raw.fileno())


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o600
    return entry


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _run_tool(name: str, settings: Settings, arguments: list[str]) -> None:
    """Run one of Postgres' own tools; the password travels in no argument list.

    Raises:
        ConfigurationError: It failed; the message has its words.
    """
    programs = binaries_for(runner_for(settings.data_dir.absolute() / "postgres"))
    parts = urlsplit(arguments.pop())
    place = parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", "@", 1))
    process = await asyncio.create_subprocess_exec(
        str(programs / name),
        f"--dbname={urlunsplit(place)}",
        *arguments,
        env={**environment(), "PGPASSWORD": unquote(parts.password or "")},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        raise
    if process.returncode != 0:
        raise ConfigurationError(f"{name} failed: {said.decode(errors='replace').strip()[:500]}")


async def restore(settings: Settings, source: Path) -> Summary:
    """Bring a backup back.

    Args:
        source: The file; all of it is checked before anything is written.

    Raises:
        ConfigurationError: It is damaged or of a newer T-Bot, or the data directory is not empty.
    """
    if settings.database.url is not None:
        raise ConfigurationError(
            "restore makes an embedded database: unset TBOT_DATABASE__URL first"
        )
    data_dir = settings.data_dir.absolute()
    if data_dir.exists() and any(data_dir.iterdir()):
        raise DataDirectoryError(
            f"{data_dir} is not empty: name an empty data directory with TBOT_DATA_DIR"
        )
    manifest = check(source)
    server = EmbeddedPostgres(data_dir, start_timeout_s=settings.database.start_timeout_s)
    server.claim()
    (data_dir / RESTORING).touch(mode=0o600)
    with tarfile.open(source) as archive, tempfile.TemporaryDirectory(dir=data_dir) as name:
        archive.extractall(name, filter="data")
        work = Path(name)
        async with server:
            arguments = ["--single-transaction", "--exit-on-error", str(work / DUMP)]
            await _run_tool("pg_restore", settings, [*arguments, server.dsn("superuser")])
        for entry in manifest["files"]:
            if entry != DUMP:
                target = data_dir / entry
                target.parent.mkdir(mode=0o700, exist_ok=True)
                (work / entry).chmod(0o600)
                (work / entry).rename(target)
    (data_dir / RESTORING).unlink()
    return Summary(source, len(manifest["files"]), source.stat().st_size, manifest["schema"])


def check(source: Path) -> dict[str, Any]:
    """Read a backup through and compare every checksum.

    Returns:
        Its manifest.

    Raises:
        ConfigurationError: It is not a whole backup, or of a newer T-Bot.
    """
    try:
        with tarfile.open(source) as archive:
            first = archive.next()
            if first is None or first.name != _MANIFEST or first.size > _MANIFEST_BYTES_MAX:
                raise ConfigurationError(f"{source} is not a backup of T-Bot")
            manifest: dict[str, Any] = json.loads(_open(archive, first).read())
            missing = dict(manifest["files"])
            for entry in archive:
                if entry.name == _MANIFEST:
                    continue
                expected = missing.pop(entry.name, None)
                path = PurePosixPath(entry.name)
                if (
                    expected is None
                    or not entry.isreg()
                    or path.is_absolute()
                    or ".." in path.parts
                ):
                    raise ConfigurationError(f"{source} holds {entry.name}, which it should not")
                if _stream_digest(_open(archive, entry)) != expected["sha256"]:
                    raise ConfigurationError(f"{source} is damaged: {entry.name} has changed")
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{source} cannot be read as a backup: {error}") from None
    if missing:
        raise ConfigurationError(f"{source} is damaged: it lacks {', '.join(missing)}")
    if manifest.get("format") != FORMAT or manifest.get("schema", 0) > len(migrations()):
        raise ConfigurationError(f"{source} was made by a newer T-Bot: restore it with that one")
    return manifest


def _open(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(entry)
    if file is None:
        raise ConfigurationError(f"{entry.name} in the backup is no file")
    return file


def _stream_digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
