"""Known vulnerabilities of every locked dependency, and bandit over the sources: `make audit`.

pip-audit answers "no known vulnerabilities" also for what it could not look up. Here each locked
dependency has to be looked up, or the audit has not taken place.

Exit status: 0 clean, 1 something was found, 75 the advisories cannot be reached (0 with
`--offline-is-fine`, and a line that says so).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent
LOCK: Final = REPOSITORY / "requirements" / "dev.txt"
"""What runs and what develops; the first is a part of the second."""
TIMEOUT_S: Final = 900
UNREACHABLE: Final = 75


def locked(text: str) -> tuple[set[str], set[str]]:
    r"""The names in a lock file: those that every machine installs, and those that some do.

    Example:
        >>> locked("a==1 \\\n    --hash=sha256:00\nb==2 ; sys_platform == 'win32' \\\n")
        ({'a'}, {'b'})
    """
    found = re.findall(r"^([a-z0-9][a-z0-9._-]*)==\S+( ;)?", text, re.MULTILINE)
    marked = {name for name, marker in found if marker}
    return {name for name, _ in found} - marked, marked


def verdict(dependencies: list[dict[str, Any]], wanted: set[str]) -> tuple[int, list[str]]:
    """What pip-audit's answer comes to.

    Args:
        dependencies: Of its JSON: `name` with `vulns`, or with `skip_reason`.
        wanted: Names that are locked.

    Returns:
        The exit status, and lines for people.

    Example:
        >>> verdict([{"name": "a", "version": "1", "vulns": []}], {"a"})
        (0, ['1 locked dependencies looked up, none skipped: no known vulnerabilities'])
        >>> verdict([{"name": "a", "skip_reason": "not found"}], {"a"})[0]
        75
        >>> verdict([{"name": "a", "version": "1", "vulns": []}], {"a", "b"})[0]
        1
    """
    known = {one["name"]: one for one in dependencies if "skip_reason" not in one}
    skipped = sorted(wanted - set(known))
    if not known:
        return UNREACHABLE, [f"not one of {len(wanted)} locked dependencies could be looked up"]
    lines = [f"{name}: not looked up" for name in skipped]
    for name, one in sorted(known.items()):
        for vulnerability in one["vulns"]:
            fixed = ", ".join(vulnerability.get("fix_versions", ())) or "none"
            lines.append(f"{name} {one['version']}: {vulnerability['id']} (fixed in: {fixed})")
    if lines:
        return 1, lines
    said = f"{len(known)} locked dependencies looked up, none skipped: no known vulnerabilities"
    return 0, [said]


def advisories() -> tuple[int, list[str]]:
    """Ask about every locked dependency."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes"]
    command += ["--format", "json", "--progress-spinner", "off", "-r", str(LOCK)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        found = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return UNREACHABLE, ["the advisories did not answer in time"]
    except (ValueError, KeyError):
        return UNREACHABLE, [line for line in done.stderr.splitlines() if line.strip()][-3:]
    everywhere, somewhere = locked(LOCK.read_text())
    return verdict(found, everywhere | somewhere & {one["name"] for one in found})


def main() -> int:
    """Run both; the exit status."""
    status, lines = advisories()
    print("== pip-audit")
    for line in lines:
        print(f"   {line}")
    if status == UNREACHABLE:
        print("   SKIPPED: the advisory service cannot be reached; nothing was audited")
        if "--offline-is-fine" in sys.argv[1:]:
            status = 0
    print("== bandit")
    command = [sys.executable, "-m", "bandit", "--quiet", "--recursive"]
    command += ["--configfile", "pyproject.toml", "src", "scripts"]
    bandit = subprocess.run(command, cwd=REPOSITORY, check=False)
    if bandit.returncode == 0:
        print("   clean")
    return status or bandit.returncode


if __name__ == "__main__":
    raise SystemExit(main())
