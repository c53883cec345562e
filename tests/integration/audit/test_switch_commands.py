"""`tbot switches` at the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest


async def test_a_halt_and_its_end_at_the_command_line(tbot: Any, desk: Any) -> None:
    assert (await tbot("switches", "list"))[1] == "No switch was ever turned: nothing is halted.\n"
    code, said, told = await tbot("switches", "halt", "trading", "--reason", "an inspection")
    assert (code, said, told) == (0, "trading is halted.\n", "")
    account = await desk.open(USDT="1000")
    assert (await desk.place(account)).detail == "an inspection"
    code, said, _ = await tbot("switches", "resume", "trading", "--reason", "done")
    assert code == 0, "what was asked for was shown"
    assert "Nothing was changed. Say --confirm to do this." in said
    assert "an inspection" in said
    code, said, told = await tbot("switches", "resume", "trading", "--reason", "done", "--confirm")
    assert (code, told) == (0, "")
    assert said.endswith("trading is resumed.\n")
    assert (await desk.place(account)).result.order
    code, said, _ = await tbot("switches", "list", "trading", "--json")
    turns = [json.loads(line) for line in said.splitlines()]
    assert [(turn["halted"], turn["reason"]) for turn in turns] == [
        (False, "done"),
        (True, "an inspection"),
    ]
    assert all(turn["by"].startswith("operator ") for turn in turns)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["halt", "venues", "--reason", "x"], "'venues' is no switch"),
        (["halt", "trading", "--reason", " "], "--reason needs some words"),
        (["resume", "trading", "--reason", "x"], "trading is not halted"),
        (["list", "nothing"], "'nothing' is no switch"),
    ],
)
def test_bad_input_is_one_clear_line(tbot_here: Any, arguments: list[str], words: str) -> None:
    code, said, told = tbot_here("switches", *arguments)
    assert code in (1, 2)
    assert words in told
    assert (said, told.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("instrument:paper:BTCUSDT", "paper has no instrument BTCUSDT"),
        ("instrument:paper:BTCUSDT", "known is BTC-USDT"),
        ("venue:papper", "no venue papper is known here"),
        ("instrument:papper:BTC-USDT", "known is paper"),
    ],
)
async def test_a_mistyped_name_halts_nothing_and_does_not_look_like_it_did(
    tbot: Any, listed: Any, name: str, words: str
) -> None:
    code, said, told = await tbot("switches", "halt", name, "--reason", "typo")
    assert (code, said) == (2, "")
    assert words in told
    assert "--to-come" in told
    assert (await tbot("switches", "list"))[1] == "No switch was ever turned: nothing is halted.\n"


async def test_something_to_come_is_halted_in_advance_and_resumed(tbot: Any, desk: Any) -> None:
    name = "instrument:paper:NEW-USDT"
    code, said, told = await tbot("switches", "halt", name, "--reason", "wait", "--to-come")
    assert (code, said) == (0, f"{name} is halted.\n"), told
    code, said, told = await tbot("switches", "resume", name, "--reason", "go", "--confirm")
    assert code == 0, told
    assert said.endswith(f"{name} is resumed.\n")


@pytest.mark.parametrize("name", ["venue:paper", "instrument:paper:BTC-USDT"])
async def test_what_is_known_is_halted(tbot: Any, listed: Any, name: str) -> None:
    code, said, _ = await tbot("switches", "halt", name, "--reason", "stop")
    assert (code, said) == (0, f"{name} is halted.\n")
