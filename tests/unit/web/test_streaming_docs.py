"""`docs/streaming.md` says what the code does: channels, parameters, codes, metrics."""

from __future__ import annotations

import re
from pathlib import Path

import prometheus_client
import pytest

from tbot.market.channels import CHANNELS, DEPTHS, INTERVALS_MS
from tbot.market.hub import CLOSE_DRAIN, CLOSE_SILENT
from tbot.market.subscribers import CLOSE_SLOW
from tbot.web import stream, stream_account, stream_words

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def page() -> str:
    return (REPOSITORY / "docs" / "streaming.md").read_text()


def test_every_channel_has_its_row_and_its_paragraph(page: str) -> None:
    for channel in CHANNELS.values():
        (row,) = re.findall(rf"^\| `{channel.name}` \|.*$", page, re.MULTILINE)
        assert channel.scope in row, row
        assert ("`interval_ms`" in row) == bool(channel.intervals_ms), row
        assert ("`depth`" in row) == bool(channel.depths), row
        assert f"**`{channel.name}`**" in page
    for value in (*INTERVALS_MS, *DEPTHS):
        assert re.search(rf"\b{value}\b", page), value


def test_every_close_code_is_listed(page: str) -> None:
    codes = {CLOSE_DRAIN, CLOSE_SILENT, CLOSE_SLOW, stream_account.CLOSE_STATE_LOST}
    codes |= {value for name, value in vars(stream_words).items() if name.startswith("CLOSE_")}
    for code in codes:
        assert re.search(rf"^\| {code} \|", page, re.MULTILINE), code


def test_every_error_code_is_listed(page: str) -> None:
    folder = REPOSITORY / "src" / "tbot"
    files = [*(folder / "web").glob("stream*.py"), folder / "market" / "channels.py"]
    text = "\n".join(file.read_text() for file in files)
    codes = set(re.findall(r"(?:problem|_tell_problem|Denied)\(\s*\"([a-z_]+)\"", text))
    assert len(codes) > 10
    listed = page[page.index("## Errors") : page.index("## Close codes")]
    assert codes <= set(re.findall(r"`([a-z_]+)`", listed)), codes


def test_every_metric_is_listed(page: str) -> None:
    assert stream.router.routes
    for metric in prometheus_client.REGISTRY.collect():
        if metric.name.startswith(("tbot_stream", "tbot_cursor")):
            name = metric.name + ("_total" if metric.type == "counter" else "")
            assert f"`{name}" in page, name
