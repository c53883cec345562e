"""Hash chain of an account's entries: pure.

Entry points: `genesis`, `seal`, `read`, `check`.

Invariants:

1. `hash(n) = SHA-256(hash(n - 1) || body(n))`, and `hash(0) = SHA-256("tbot:1:" + account id)`, so
   a chain cannot be passed off as another account's.
2. What is hashed is what is stored, byte for byte; nothing is ever encoded a second time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

import msgspec

from tbot.core.errors import IntegrityError

HASH_PREFIX_DIGITS = 16
"""Hex digits of an entry's hash that make a resume token, with its sequence."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One journal entry: what happened to one account, with everything needed to apply it again.

    Attributes:
        v: Version of the body's format.
        account: Whose stream.
        seq: 1, 2, 3 … without gaps.
        at: RFC 3339, UTC, microseconds; never earlier than the entry before.
        kind: What happened, as `order.accepted`.
        command: Id of the command that caused it; entries of one command share it.
        by: Who did it: `kind` (`user`, `gateway`, `operator`, `system`), and where known `user`,
            `session`, `address`, `request`, `name`.
        postings: `[holder, asset, amount]`. The holders `available` and `held` are this
            account's; any other names a counter-account. Per asset they sum to zero over a command.
        data: The effects, in JSON types; amounts as strings.
    """

    v: int
    account: str
    seq: int
    at: str
    kind: str
    command: str
    by: dict[str, str]
    postings: list[tuple[str, str, str]]
    data: dict[str, Any]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


def genesis(account_id: UUID) -> bytes:
    """The hash before an account's first entry."""
    return hashlib.sha256(f"tbot:1:{account_id}".encode()).digest()


def seal(previous: bytes, entry: Entry) -> tuple[bytes, bytes]:
    """The bytes to store for an entry, and its hash."""
    body = _encode(entry)
    return body, hashlib.sha256(previous + body).digest()


def read(body: bytes) -> Entry:
    """The entry in stored bytes.

    Raises:
        IntegrityError: The bytes are no entry.
    """
    try:
        return _decode(body)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"a journal body cannot be read: {error}") from error


def check(
    account_id: UUID,
    rows: Iterable[tuple[int, bytes, bytes]],
    previous: bytes | None = None,
    after_seq: int = 0,
) -> Iterator[Entry]:
    """Yield the entries of consecutive rows, having recomputed each hash.

    Args:
        rows: `(seq, body, hash)` in order, starting with `after_seq + 1`.
        previous: Hash of entry `after_seq`; None stands for the genesis.

    Raises:
        IntegrityError: A row is missing, out of place, of another account or does not hash to
            what is stored; the message names the first such sequence.
    """
    expected_hash = genesis(account_id) if previous is None else previous
    expected_seq = after_seq
    at = ""
    for seq, body, stored in rows:
        expected_seq += 1
        where = f"account {account_id}, entry {expected_seq}"
        if seq != expected_seq:
            raise IntegrityError(f"{where}: missing; the next stored one is {seq}")
        expected_hash = hashlib.sha256(expected_hash + body).digest()
        if expected_hash != stored:
            raise IntegrityError(f"{where}: the hash does not match its body and predecessor")
        entry = read(body)
        if entry.seq != seq or entry.account != str(account_id):
            raise IntegrityError(f"{where}: the body belongs to {entry.account}, {entry.seq}")
        if entry.at < at:
            raise IntegrityError(f"{where}: earlier than the entry before it")
        at = entry.at
        yield entry
