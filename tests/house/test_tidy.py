"""Nothing dead, nothing postponed, nothing of one machine."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

# Put together so that this file does not hold the words itself.
POSTPONED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME)\b")
MACHINE = re.compile(r"/(?:work|root|home/\w+|Users/\w+|tmp/scratch)/")
BANNED_NAMES = {"utils", "util", "common", "helpers", "misc", "manager", "service", "repository"}
SOURCES = {".py", ".sql", ".sh", ".toml", ".md", ".yml", ".yaml", ""}


def test_nothing_is_postponed_in_comments(texts: dict[Path, str]) -> None:
    found = [
        f"{path}:{number}"
        for path, text in texts.items()
        if path.suffix in SOURCES
        for number, line in enumerate(text.splitlines(), 1)
        if POSTPONED.search(line)
    ]
    assert not found


def test_no_path_of_a_machine(texts: dict[Path, str]) -> None:
    found = [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts.items()
        if path.suffix in SOURCES and path != Path("tests/house/test_tidy.py")
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE.search(line)
    ]
    assert not found


@pytest.mark.parametrize("name", ["run", "dev"])
def test_locks_hold_names_versions_and_hashes_only(texts: dict[Path, str], name: str) -> None:
    line = re.compile(
        r"(?:[a-z0-9][a-z0-9._-]*==[^\s;]+(?: ; [a-z_]+ (?:==|!=|<|>=) '[^']*')? \\"
        r"|    --hash=sha256:[0-9a-f]{64}(?: \\)?)"
    )
    for written in texts[Path(f"requirements/{name}.txt")].splitlines():
        assert line.fullmatch(written), written


def test_development_locks_what_runs(texts: dict[Path, str]) -> None:
    run, dev = (
        set(re.findall(r"^\S+==\S+", texts[Path(f"requirements/{name}.txt")], re.MULTILINE))
        for name in ("run", "dev")
    )
    assert run <= dev


def test_every_module_is_used(texts: dict[Path, str]) -> None:
    modules: dict[str, Path] = {}
    for path in texts:
        if path.suffix == ".py" and path.parts[0] == "src":
            parts = path.with_suffix("").parts[1:]
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    used: set[str] = set()
    for path, text in texts.items():
        if path.suffix == ".py":
            used |= _imports(text, path)
    entry_points = {"tbot", "tbot.__main__", "tbot.exchange.__main__"}
    dead = [
        str(path)
        for name, path in modules.items()
        if name not in used | entry_points and path.name != "__init__.py"
    ]
    assert not dead, f"imported by nothing: {dead}"


def _imports(text: str, path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    # A module that imports itself does not use itself.
    own = ".".join(path.with_suffix("").parts[1:]) if path.parts[0] == "src" else ""
    return found - {own}


def test_names_say_what_a_thing_is(texts: dict[Path, str]) -> None:
    vague = [str(path) for path in texts if path.suffix == ".py" and path.stem in BANNED_NAMES]
    assert not vague


def test_the_changelog_knows_the_version(texts: dict[Path, str]) -> None:
    from tbot import __version__

    assert f'version = "{__version__}"' in texts[Path("pyproject.toml")]
    assert f"## {__version__}" in texts[Path("CHANGELOG.md")]


@pytest.mark.parametrize("name", ["bootstrap", "check", "samples", "bench", "lock"])
def test_shell_scripts_parse_and_can_be_run(repository: Path, name: str) -> None:
    path = repository / "scripts" / name
    assert os.access(path, os.X_OK)
    subprocess.run(["/bin/sh", "-n", str(path)], check=True)
