"""Makes or reuses the project's virtual environment (.venv) with the tested versions; needs nothing but Python.

Imported by scripts/demo and scripts/test. An environment that was made from the same pyproject.toml and
requirements.lock is used as it is. Where there is a C++ compiler, the compiled kernels are built.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
OLDEST, NEWEST = (3, 10), (3, 13)
TOOL = "protein-lm"


def ready(*extras: str) -> Path:
    """Install the project with `extras` into .venv and build its kernels, unless that is done; the folder of its programs."""
    programs = _installed(*extras)
    if os.environ.get("PROTEIN_LM_KERNELS") != "off":  # it says in a line what it does, or why not; nothing needs them
        subprocess.run([str(programs / "protein-lm"), "kernels", "build", "--missing"])
    return programs


def _installed(*extras: str) -> Path:
    programs = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
    stamp = ENVIRONMENT / "installed.txt"
    wanted = _fingerprint()
    have = stamp.read_text().split() if stamp.is_file() else []
    if have[:1] == [wanted] and set(extras) <= set(have[1:]):
        return programs
    extras = tuple(sorted({*extras, *(have[1:] if have[:1] == [wanted] else [])}))
    if not (programs / "python").exists() and not (programs / "python.exe").exists():
        _run([_interpreter(), "-m", "venv", str(ENVIRONMENT)], "cannot make a virtual environment")
    print(f"installing the project and its dependencies into {ENVIRONMENT.name} (once)", file=sys.stderr, flush=True)
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    _run(
        [
            *(str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--constraint", str(ROOT / "requirements.lock"), "--editable", target),
        ],
        "cannot install the dependencies; is there a network?",
    )
    stamp.write_text(" ".join([wanted, *extras]) + "\n")
    return programs


def _fingerprint() -> str:
    content = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "requirements.lock"))
    return hashlib.sha256(content + str(ROOT).encode()).hexdigest()


def _interpreter() -> str:
    """A Python that the tested versions exist for: this one, or another on the PATH."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        if found := shutil.which(f"python3.{minor}"):
            return found
    supported = f"{'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"
    sys.exit(f"{TOOL}: this is Python {sys.version.split()[0]}; install Python {supported} and run this again")


def _run(command: list[str], failure: str) -> None:
    if (status := subprocess.run(command).returncode) != 0:
        sys.exit(f"{TOOL}: {failure} (status {status} of: {' '.join(command)})")
