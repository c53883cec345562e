"""An authenticator app: codes that are good now, and codes that certainly are not."""

from __future__ import annotations

import base64
import time
from typing import Any

from tbot.auth import totp

_AFTER = 20
"""Steps that no test outlasts: ten minutes."""


class Phone:
    """Knows one secret.

    Args:
        secret: As the server tells it, in base 32.
    """

    def __init__(self, secret: str) -> None:
        self.secret = base64.b32decode(secret + "=" * (-len(secret) % 8))

    def code(self, steps: int = 0) -> str:
        """The code of this half minute, or of another one."""
        return totp.code_at(self.secret, int(time.time()) // totp.STEP_S + steps)

    def wrong(self, count: int) -> list[str]:
        """Codes that are not good now, nor will be while a test runs."""
        near = range(-totp.SKEW_STEPS, _AFTER)
        good = {self.code(steps) for steps in near}
        return [code for code in map("{:06}".format, range(count + len(good))) if code not in good][
            :count
        ]


async def unuse(pool: Any) -> None:
    """Let this half minute's codes be used again, as if they were the next one's."""
    await pool.execute("UPDATE totp_factors SET last_step = 0")
