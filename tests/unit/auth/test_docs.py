"""The page on authentication names every scope and only settings that there are."""

from __future__ import annotations

import re
from pathlib import Path

from tbot.auth.scopes import SCOPES_OF, Scope
from tbot.core.settings import AuthSettings

PAGE = (Path(__file__).parents[3] / "docs" / "authentication.md").read_text(encoding="utf-8")


def test_every_scope_is_in_the_table_with_its_roles() -> None:
    rows = dict(re.findall(r"^\| `([a-z:]+)` \| ([a-z, ]+) \|", PAGE, re.MULTILINE))
    assert set(rows) == set(Scope)
    for scope, roles in rows.items():
        expected = {role.value for role, scopes in SCOPES_OF.items() if scope in scopes}
        assert set(roles.split(", ")) == expected


def test_every_setting_it_names_exists() -> None:
    named = set(re.findall(r"`auth\.([a-z_]+)`", PAGE))
    assert named <= set(AuthSettings.model_fields)
