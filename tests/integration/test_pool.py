"""The committer's own connection."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tbot.core.settings import CommitterSettings
from tbot.db.pool import connect_committer

_MOST = Path("/proc/sys/net/core/wmem_max")


@pytest.mark.skipif(not _MOST.is_file(), reason="this system does not tell the largest buffer")
async def test_a_large_batch_fits_into_the_socket(dsn: str) -> None:
    connection = await connect_committer(dsn, CommitterSettings())
    try:
        raw = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        if raw.family != socket.AF_UNIX:
            pytest.skip("not over a socket of this machine")
        size_bytes = raw.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        # Linux takes twice what it is asked for, within its limit.
        assert size_bytes == 2 * min(int(_MOST.read_text()), 1 << 21)
    finally:
        await connection.close()
