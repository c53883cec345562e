"""How long deliveries are tried for: what the page says is what the settings make."""

from __future__ import annotations

import re
from pathlib import Path

from tbot.core.payment_settings import WebhookSettings
from tbot.ledger.webhooks_delivery import delay_most_s, tried_for_s

PAGE = Path(__file__).resolve().parents[3] / "docs" / "webhooks.md"
ROW = re.compile(r"\| (\d+)(, the last)? \| (\S+ \w+) \| (\S+ \w+)(: about three days)? \|")


def span(least_s: float, most_s: float) -> str:
    """From and to, in the unit that suits the latter."""
    for unit, size_s in (("h", 3600), ("min", 60), ("s", 1)):
        if most_s > 1.5 * size_s or unit == "s":
            return f"{_half_up(least_s / size_s)}–{_half_up(most_s / size_s)} {unit}"
    raise AssertionError


def _half_up(number: float) -> int:
    return int(number + 0.5)


def test_the_page_tells_how_long_an_entry_is_tried_for() -> None:
    settings = WebhookSettings()
    rows = ROW.findall(PAGE.read_text())
    for number, _, gap, since, _ in rows:
        attempt = int(number)
        most_s = delay_most_s(settings, attempt - 1)
        assert (gap, since) == (span(most_s / 2, most_s), span(*tried_for_s(settings, attempt)))
    assert [row[0] for row in rows if row[1]] == [str(settings.attempts_max)]


def test_an_entry_is_tried_for_about_three_days_and_two_of_them_disable() -> None:
    settings = WebhookSettings()
    soonest_s, latest_s = tried_for_s(settings, settings.attempts_max)
    assert 2.5 < (soonest_s + latest_s) / 2 / 86_400 < 3.5
    assert settings.dead_letters_max == 2
