"""The numbered scenarios: what the nasty server does, and what a client has to make of it.

1xx connecting, 2xx logging in, 3xx frames, 4xx trades, 5xx books, 6xx accounts, 8xx draining and
limits, 9xx orders, 10xx silence, 11xx server-sent events, 70000 + n the close codes. Numbers stay
what they are; new scenarios get new ones.
"""

from __future__ import annotations

import sdk_scenarios_data  # noqa: F401 - it fills the list
from sdk_scenarios_life import COME_BACK, FOR_GOOD
from sdk_stones import SCENARIOS, Scenario

__all__ = ["COME_BACK", "FOR_GOOD", "SCENARIOS", "Scenario"]
