"""Makes `.venv` and installs a set of locked packages; called by `scripts/bootstrap`.

Standard library only. An interrupted run leaves `.venv/installing` behind, and the next one starts
over, because a half-unpacked package can look installed.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
SITE = VENV / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
PYTHON = VENV / "bin" / "python"
COMMAND = """\
#!/bin/sh
unset PYTHONDONTWRITEBYTECODE PYTHONHOME PYTHONPATH
exec "$(dirname -- "$0")/python" -m tbot "$@"
"""


def main() -> int:
    """Install the set named by the first argument; the second is the stamp to leave."""
    packages, stamp = sys.argv[1], sys.argv[2]
    with (ROOT / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two `make` at once: the second finds the work done
        done = VENV / f"installed-{packages}"
        if usable() and done.is_file() and done.read_text().strip() == stamp:
            return 0
        begun = time.monotonic()
        if not usable():
            say(f"Making .venv with Python {sys.version.split()[0]}")
            venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(VENV)
        (VENV / "installing").touch()
        lock_file = ROOT / "requirements" / f"{packages}.txt"
        count = sum(1 for line in lock_file.open() if re.match(r"[A-Za-z0-9]", line))
        status = install(lock_file, count, lock.fileno())
        if status != 0:
            return status
        # Relative, so that the folder can be moved; no build back end is needed.
        (SITE / "tbot.pth").write_text("../../../../src\n")
        command = VENV / "bin" / "tbot"
        command.write_text(COMMAND)
        command.chmod(0o755)
        done.write_text(stamp + "\n")
        (VENV / "installing").unlink()
        say(f"Installed {count} packages in {time.monotonic() - begun:.0f} s")
        return 0


def usable() -> bool:
    """Whether `.venv` runs, is of this Python's version and was not interrupted."""
    if (VENV / "installing").exists() or not SITE.is_dir():
        return False
    try:
        run = subprocess.run([PYTHON, "-I", "-c", "import site"], capture_output=True, check=False)
    except OSError:
        return False
    return run.returncode == 0


def install(lock_file: Path, count: int, held: int) -> int:
    """Run pip with hashes required, showing how far it is; its words only when it fails.

    It inherits the lock `held`: were we killed, the next run would wait for it to end.
    """
    command, environment = pip()
    command += ["install", "--require-hashes", "--no-deps", "--no-compile", "--prefer-binary"]
    command += ["--no-input", "--disable-pip-version-check", "--no-warn-script-location"]
    command += ["--progress-bar", "off", "--requirement", str(lock_file)]
    if os.geteuid() == 0:
        command += ["--root-user-action", "ignore"]
    said: list[str] = []
    seen = 0
    with subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=(held,),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            found = re.match(
                r"(?:Collecting|Requirement already satisfied:) ([A-Za-z0-9._-]+)", line
            )
            if found:
                seen += 1
                progress(seen, count, found[1].split("==")[0])
            elif line.startswith("Installing collected"):
                progress(count, count, "unpacking")
    progress_end()
    if process.returncode != 0:
        words = [line.strip() for line in said if "ERROR" in line or "error" in line] or said[-3:]
        say("The packages could not be installed: " + " ".join(words[:3]).strip())
        say("Check the network connection to your package index, then run this again.")
    return process.returncode


def pip() -> tuple[list[str], dict[str, str]]:
    """The command that runs pip for `.venv`, and its environment.

    Python's bundled pip runs from its own archive, which saves installing it.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV")
        and not name.startswith("PYTHON")
    }
    home = environment.get("HOME", "")
    if not home or not os.access(home, os.W_OK):
        environment["PIP_NO_CACHE_DIR"] = "1"
    import ensurepip

    directories = [Path(ensurepip.__file__).parent / "_bundled", Path("/usr/share/python-wheels")]
    for wheel in (wheel for directory in directories for wheel in directory.glob("pip-*.whl")):
        environment["PYTHONPATH"] = str(wheel)
        return [str(PYTHON), "-m", "pip"], environment
    subprocess.run([PYTHON, "-I", "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
    return [str(PYTHON), "-m", "pip"], environment


def say(text: str) -> None:
    """One line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def progress(seen: int, count: int, name: str) -> None:
    """A bar on a terminal, a line now and then elsewhere."""
    seen = min(seen, count)
    if sys.stderr.isatty():
        bar = "█" * (30 * seen // count)
        sys.stderr.write(f"\r\x1b[K  {bar:<30} {seen}/{count} {name}")
        sys.stderr.flush()
    elif seen % 15 == 0 or name == "unpacking":
        say(f"  {seen}/{count} {name}")


def progress_end() -> None:
    """Leave the bar's line."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("Interrupted; run it again to go on.")
        sys.exit(130)
    except OSError as problem:
        say(f"T-Bot could not be installed here: {problem}")
        sys.exit(1)
