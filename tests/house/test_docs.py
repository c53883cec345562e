"""Generated pages say what the sources say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tbot.core.refusals import Reason
from tbot.db.migrate import migrations


@pytest.fixture(scope="module")
def generate(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", repository / "scripts/generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setting_is_documented(generate: ModuleType, repository: Path) -> None:
    page = (repository / "docs/settings.md").read_text()
    assert page == generate.settings_page(), "run `make docs`"


def test_every_refusal_is_documented(generate: ModuleType, repository: Path) -> None:
    page = (repository / "docs/refusals.md").read_text()
    assert page == generate.refusals_page(), "run `make docs`"
    assert all(reason.doc.strip().endswith(".") for reason in Reason)


async def test_the_schema_is_what_the_migrations_make(
    generate: ModuleType, repository: Path, postgres, database: str
) -> None:
    made = await generate.schema_text(postgres.url(database, "owner"), postgres.server.programs)
    assert made == (repository / "docs/schema.sql").read_text(), "run `make schema`"


def test_migrations_leave_transactions_to_the_runner() -> None:
    for migration in migrations():
        words = {
            line.split("--")[0].strip().upper().rstrip(";") for line in migration.sql.split("\n")
        }
        assert not words & {"BEGIN TRANSACTION", "COMMIT", "ROLLBACK"}, migration.name


def test_relative_links_lead_somewhere(texts: dict[Path, str], repository: Path) -> None:
    import re

    broken = []
    for path, text in texts.items():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target or target.startswith(("#", "mailto:")):
                continue
            if not (repository / path.parent / target.split("#")[0]).exists():
                broken.append(f"{path}: {target}")
    assert not broken
