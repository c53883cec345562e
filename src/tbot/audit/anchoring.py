"""Signing the heads of all streams, and keeping the signatures outside the database.

An anchor file only grows. Each anchor signs the heads that moved since the one before (a *full* one
all heads) and names the one before, so the file is a chain of its own. What the last anchor said
of every account is kept beside it, in account order, so that finding what moved is one pass over
two sorted lists: memory does not grow with the accounts, and the cost is one statement.

Layout of the directory, readable by its owner alone:

    key.pem          the signing key; make a copy where the database's administrators cannot get it
    key.pub.pem      its public half, for everybody
    anchors.ndjson   the anchors
    heads.ndjson     the heads as last anchored; can be removed, then the next anchor is a full one
    lock             held while an anchor is written
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import structlog
from prometheus_client import Gauge

from tbot.audit import form
from tbot.audit.export import Anchored, Connection, Heads, read_heads
from tbot.audit.form import Anchor, Head, Malformed, SignedAnchor
from tbot.audit.keys import SigningKey, load_signing, make_signing
from tbot.audit.merkle import Tree
from tbot.core.clock import stamp, utc_now
from tbot.core.errors import ConfigurationError, IntegrityError
from tbot.core.settings import Settings
from tbot.db.cluster import FileLock, sync_directory, write_durably

_BLOCK_BYTES: Final = 1 << 20

_log = structlog.get_logger(__name__)

anchored_at_gauge = Gauge("tbot_audit_anchored_seconds", "Wall time of the newest anchor.")


class WentBack(IntegrityError):
    """A head is behind, or other than, what was anchored: history was changed, or restored."""


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of anchors."""

    directory: Path

    @property
    def key(self) -> Path:
        """The signing key."""
        return self.directory / "key.pem"

    @property
    def public_key(self) -> Path:
        """Its public half."""
        return self.directory / "key.pub.pem"

    @property
    def anchors(self) -> Path:
        """The anchors."""
        return self.directory / "anchors.ndjson"

    @property
    def heads(self) -> Path:
        """The heads as last anchored."""
        return self.directory / "heads.ndjson"

    def prepare(self) -> SigningKey:
        """Make what is missing: the directory, the key and its public half.

        Raises:
            ConfigurationError: The directory cannot be used, or the key is gone although there are
                anchors that it signed.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.key.exists():
                if self.anchors.exists():
                    raise ConfigurationError(
                        f"{self.key} is gone, but {self.anchors} was signed with it: put it back,"
                        " or begin a new directory with TBOT_AUDIT__DIRECTORY"
                    )
                with contextlib.suppress(FileExistsError):  # another process was quicker
                    make_signing(self.key)
            key = load_signing(self.key)
            if not self.public_key.exists():
                write_durably(self.public_key, key.public.pem())
                self.public_key.chmod(0o644)
        except OSError as error:
            raise ConfigurationError(
                f"{self.directory} cannot be used for anchors: {error.strerror}; name another with"
                " TBOT_AUDIT__DIRECTORY"
            ) from None
        return key


def place_of(settings: Settings) -> Place:
    """The directory that the settings name, or the one beside the data directory."""
    if settings.audit.directory is not None:
        return Place(settings.audit.directory.absolute())
    data_dir = settings.data_dir.absolute()
    return Place(data_dir.with_name(f"{data_dir.name}.audit"))


async def anchor(
    connection: Connection, place: Place, *, full: bool = False, restart: str | None = None
) -> SignedAnchor | None:
    """Sign what moved since the last anchor.

    Args:
        connection: For any role that may read `streams`; one statement runs on it.
        full: Sign all heads.
        restart: Why heads may have gone back since the last anchor; signed with it.

    Returns:
        The new anchor; None when nothing moved.

    Raises:
        ConfigurationError: The directory or the key cannot be used, or another process is at it.
        WentBack: A head is not a continuation of what was anchored, and no `restart` was given.
    """
    key = place.prepare()
    lock = FileLock(place.directory / "lock")
    if not lock.acquire():
        raise ConfigurationError(f"another process is writing an anchor in {place.directory}")
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        spool = stack.enter_context(tempfile.TemporaryFile(dir=place.directory))
        heads = await read_heads(connection, spool, least=1)
        # Signing reads and writes files of any size: not on the event loop. The thread goes on
        # when its caller is cancelled, and has the lock and the file until it ends.
        owned = stack.pop_all()
    signed = await asyncio.to_thread(_sign, owned, place, key, heads, full, restart)
    if signed is not None:
        anchored_at_gauge.set_to_current_time()
        _log.info("anchored", index=signed.anchor.index, id=signed.anchor.id,
                  leaves=signed.anchor.leaves)  # fmt: skip
    return signed


def newest(place: Place) -> SignedAnchor | None:
    """The last anchor in the file; None when there is none."""
    if not place.anchors.exists():
        return None
    with place.anchors.open("rb") as file:
        return _last(file)[0]


def newest_named(place: Place) -> Anchored | None:
    """The last anchor's index and id."""
    signed = newest(place)
    return None if signed is None else Anchored(signed.anchor.index, signed.anchor.id)


def _sign(
    owned: contextlib.ExitStack,
    place: Place,
    key: SigningKey,
    heads: Heads,
    full: bool,
    restart: str | None,
) -> SignedAnchor | None:
    with owned, _opened(place.anchors) as file:
        last, end = _last(file)
        if end != file.seek(0, os.SEEK_END):
            _log.warning("unsigned_lines_removed", file=str(place.anchors))
            file.truncate(end)  # an anchor that was cut while being written: nothing signed it
        known = _known(place.heads, last)
        moved_total = _check(heads, known, restart)
        if last is not None and not moved_total and not full and restart is None:
            return None
        # A full anchor costs hardly more than one of most heads, and lets readers begin there.
        full = full or known is None or restart is not None or 2 * moved_total > heads.accounts
        leaves = heads if full else _moved(heads, known)
        file.seek(end)
        tree = Tree()
        for head in leaves:
            tree.add(head.leaf())
            file.write(form.leaf(head))
        statement = Anchor(
            index=0 if last is None else last.anchor.index + 1,
            at=stamp(utc_now()),
            full=full,
            previous=form.NO_ANCHOR if last is None else last.anchor.id,
            leaves=tree.size,
            root=tree.root().hex(),
            accounts=heads.accounts,
            entries=heads.entries,
            restart=restart,
        )
        signature = key.sign(form.ANCHOR_CONTEXT + statement.statement())
        signed = SignedAnchor(statement, key.public.fingerprint, signature)
        file.write(form.anchor(signed))
        file.flush()
        os.fsync(file.fileno())
        _keep(place, heads, signed)
    return signed


def _opened(path: Path) -> IO[bytes]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "r+b")


def _last(file: IO[bytes]) -> tuple[SignedAnchor | None, int]:
    """The last anchor in a file, and where its line ends."""
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while end > 0:
        begin = max(0, end - _BLOCK_BYTES)
        file.seek(begin)
        block = file.read(end - begin) + tail
        found = block.rfind(b'{"anchor":')
        while found >= 0:
            newline = block.find(b"\n", found)
            line = block[found : newline + 1]
            if newline >= 0:
                with contextlib.suppress(Malformed):
                    read = form.read_anchor_line(line)
                    if isinstance(read, SignedAnchor):
                        return read, begin + newline + 1
            found = block.rfind(b'{"anchor":', 0, found)
        tail, end = block[:_BLOCK_BYTES], begin
    return None, 0


def _known(path: Path, last: SignedAnchor | None) -> Path | None:
    """The heads of the last anchor, if they are at hand and of that anchor."""
    if last is None:
        return None
    try:
        with path.open("rb") as file:
            return path if file.readline() == _title(last) else None
    except OSError:
        return None


def _title(signed: SignedAnchor) -> bytes:
    return b'{"heads_of":"%s"}\n' % signed.anchor.id.encode()


def _keep(place: Place, heads: Heads, signed: SignedAnchor) -> None:
    descriptor, name = tempfile.mkstemp(dir=place.directory, prefix=".heads.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_title(signed))
            for head in heads:
                file.write(form.leaf(head))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(place.heads)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_directory(place.directory)


def _pairs(heads: Heads, known: Path | None) -> Iterator[tuple[Head | None, Head | None]]:
    """Heads now and as anchored, side by side, in account order."""
    if known is None:
        for head in heads:
            yield head, None
        return
    with known.open("rb") as file:
        file.readline()
        old = _next(file)
        for head in heads:
            while old is not None and old.account < head.account:
                yield None, old
                old = _next(file)
            if old is not None and old.account == head.account:
                yield head, old
                old = _next(file)
            else:
                yield head, None
        while old is not None:
            yield None, old
            old = _next(file)


def _next(file: IO[bytes]) -> Head | None:
    line = file.readline()
    if not line:
        return None
    read = form.read_anchor_line(line)
    assert isinstance(read, Head)
    return read


def _check(heads: Heads, known: Path | None, restart: str | None) -> int:
    """How many heads moved.

    Raises:
        WentBack: One is not a continuation of what was anchored.
    """
    moved = 0
    for head, old in _pairs(heads, known):
        moved += head != old
        if old is None or old.seq is None or restart is not None:
            continue
        if head is None or head.seq is None:
            raise WentBack(f"account {old.account} is gone; entry {old.seq} of it was anchored")
        if head.seq < old.seq:
            raise WentBack(
                f"account {head.account} ends at entry {head.seq}; entry {old.seq} was anchored"
            )
        if head.seq == old.seq and head.hash != old.hash:
            raise WentBack(f"account {head.account}: entry {head.seq} was anchored as another one")
    return moved


def _moved(heads: Heads, known: Path | None) -> Iterator[Head]:
    for head, old in _pairs(heads, known):
        if head is not None and head != old:
            yield head
