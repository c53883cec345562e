"""Every numbered attack of docs/security.md has a test of its number, and the page names them all."""

from __future__ import annotations

import re
from pathlib import Path

ATTACKS = range(1, 63)
PAGE = Path("docs/security.md")


def test_every_attack_has_a_test(texts: dict[Path, str]) -> None:
    tests: dict[int, set[str]] = {}
    for path, text in texts.items():
        if path.parts[:2] == ("tests", "security"):
            for name, number in re.findall(
                r"^(?:async )?def (test_a(\d\d)_\w+)", text, re.MULTILINE
            ):
                tests.setdefault(int(number), set()).add(name)
    assert sorted(set(ATTACKS) - set(tests)) == [], "without a test"
    assert sorted(set(tests) - set(ATTACKS)) == [], "tests of no attack"


def test_the_page_has_every_attack_and_names_tests_that_exist(texts: dict[Path, str]) -> None:
    page = texts[PAGE]
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| [^|]+ \| `(\w+)` \|$", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(ATTACKS)
    everything = "\n".join(
        text for path, text in texts.items() if path.parts[:2] == ("tests", "security")
    )
    for number, name in rows:
        assert name.startswith(f"test_a{int(number):02}_"), number
        assert re.search(rf"def {name}\(", everything), f"{name} is not there any more"
