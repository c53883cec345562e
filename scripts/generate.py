"""Writes what is generated: reference pages and the schema's snapshot, or the next migration.

Usage: generate.py docs | schema | migration NAME
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tbot.core.errors import ConfigurationError
from tbot.core.refusals import Reason
from tbot.core.settings import Settings
from tbot.db.cluster import environment
from tbot.db.embedded import EmbeddedPostgres
from tbot.db.migrate import migrate, next_file
from tbot.web.problems import catalogue_markdown, reason_status

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"


def settings_page() -> str:
    """`docs/settings.md`: every environment variable with its default, bounds and meaning."""
    lines = [
        "# Settings",
        "",
        "Generated from `src/tbot/core/settings.py` by `make docs`. Every setting is a variable of",
        "the environment; lists are JSON. An unknown variable of a section stops the start.",
    ]
    for section, summary, fields in _sections(Settings):
        lines += ["", f"## {section}", "", summary, ""] if section else ["", summary, ""]
        lines += ["| variable | default | meaning |", "| --- | --- | --- |"]
        lines += [_setting_row(name, info) for name, info in fields]
    return "\n".join(lines) + "\n"


def _sections(
    model: type[BaseModel],
) -> Iterator[tuple[str, str, list[tuple[str, FieldInfo]]]]:
    plain: list[tuple[str, FieldInfo]] = []
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            nested.append((name, kind))
        else:
            plain.append((f"TBOT_{name.upper()}", info))
    yield "", (model.__doc__ or "").strip().splitlines()[0], plain
    for name, kind in nested:
        fields = [
            (f"TBOT_{name.upper()}__{field.upper()}", info)
            for field, info in kind.model_fields.items()
        ]
        yield name, (kind.__doc__ or "").strip().splitlines()[0], fields


def _setting_row(name: str, info: FieldInfo) -> str:
    if not info.description:
        raise ConfigurationError(f"{name} has no description")
    meaning = " ".join(info.description.split())
    limits = _limits(info)
    return f"| `{name}` | {_default(info)} | {meaning}{f' ({limits})' if limits else ''} |".replace(
        "||", r"\|\|"
    )


def _limits(info: FieldInfo) -> str:
    words = []
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    for rule in info.metadata:
        words += [
            f"{sign} {getattr(rule, name)}" for name, sign in signs.items() if hasattr(rule, name)
        ]
    choices = _choices(info.annotation)
    if choices:
        words.append("one of " + ", ".join(f"`{choice}`" for choice in choices))
    return ", ".join(words)


def _choices(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (list, Union, UnionType):
        return tuple(choice for part in get_args(kind) for choice in _choices(part))
    return ()


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value is PydanticUndefined or value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, dict):
        inside = ", ".join(f'"{name}": "{amount}"' for name, amount in value.items())
        return f"`{{{inside}}}`"
    if isinstance(value, list):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    return f"`{format(value, 'f') if isinstance(value, Decimal) else value}`"


def refusals_page() -> str:
    """`docs/refusals.md`: every reason for which a command may be refused."""
    lines = [
        "# Refusals",
        "",
        "Generated from `src/tbot/core/refusals.py` by `make docs`. A refusal is the `code` of a",
        "problem document; its status over HTTP is beside it. A refusal changed nothing.",
        "",
        "| code | status | meaning |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| `{reason.value}` | {reason_status(reason)} | {' '.join(reason.doc.split())} |"
        for reason in Reason
    ]
    return "\n".join(lines) + "\n"


async def schema_text(url: str, programs: Path) -> str:
    """The schema that the migrations make, as `pg_dump` tells it.

    Args:
        url: A migrated database, for its owner.
        programs: Directory of `pg_dump`.
    """
    said = await asyncio.to_thread(
        subprocess.run,
        [
            str(programs / "pg_dump"),
            *("--schema-only", "--no-owner", "--restrict-key=tbot", f"--dbname={url}"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    kept: list[str] = []
    for line in said.stdout.splitlines():
        if line.startswith(("-- Dumped", "\\restrict", "\\unrestrict", "SET ", "--")):
            continue
        if line.startswith("SELECT pg_catalog.set_config"):
            continue
        if line or (kept and kept[-1]):
            kept.append(line)
    head = "-- Generated from src/tbot/db/migrations by `make schema`: what they add up to.\n\n"
    return head + "\n".join(kept).strip() + "\n"


async def _replayed() -> str:
    with tempfile.TemporaryDirectory(prefix="tbot-schema-") as name:
        Path(name).chmod(0o711)
        server = EmbeddedPostgres(Path(name) / "data", throw_away=True, options={"fsync": "off"})
        async with server:
            await migrate(server.dsn("owner"))
            return await schema_text(server.dsn("owner"), server.programs)


def main() -> int:
    """Do what the arguments ask for."""
    match sys.argv[1:]:
        case ["docs"]:
            (DOCS / "settings.md").write_text(settings_page())
            (DOCS / "refusals.md").write_text(refusals_page())
            (DOCS / "problems.md").write_text(catalogue_markdown())
        case ["schema"]:
            (DOCS / "schema.sql").write_text(asyncio.run(_replayed()))
        case ["migration", name]:
            print(os.path.relpath(next_file(name)))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigurationError as error:
        sys.exit(str(error))
