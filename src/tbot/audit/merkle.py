"""A Merkle tree's root over leaves that come one by one: RFC 9162, section 2.1. Pure.

Invariant: memory is one hash per bit of the number of leaves.
"""

from __future__ import annotations

import hashlib
from typing import Final

EMPTY: Final = hashlib.sha256(b"").digest()


class Tree:
    """Takes leaves in order; `root` may be asked at any time."""

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[tuple[int, bytes]] = []

    def add(self, leaf: bytes) -> None:
        """Append a leaf."""
        height, digest = 0, hashlib.sha256(b"\x00" + leaf).digest()
        while self._peaks and self._peaks[-1][0] == height:
            _, left = self._peaks.pop()
            height, digest = height + 1, _node(left, digest)
        self._peaks.append((height, digest))
        self.size += 1

    def root(self) -> bytes:
        """The root over everything added so far; without leaves the hash of nothing."""
        if not self._peaks:
            return EMPTY
        digest = self._peaks[-1][1]
        for _, left in reversed(self._peaks[:-1]):
            digest = _node(left, digest)
        return digest


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
