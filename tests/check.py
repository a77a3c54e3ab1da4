"""`python -m tests.check`: every check that a change has to pass, in order; stops at the first that fails.

python -m tests.check                 ruff, format, mypy, imports, tests, precision
python -m tests.check --slow          the slow tests, too
python -m tests.check --only ruff,mypy
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable, "-m"]

CHECKS: dict[str, list[str]] = {
    "ruff": [*PYTHON, "ruff", "check", "."],
    "format": [*PYTHON, "ruff", "format", "--check", "."],
    "mypy": [*PYTHON, "mypy"],
    "imports": [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
    "tests": [
        *PYTHON,
        "pytest",
    ],  # not -n 2: measured, it takes 1.4 times the processor time, and no less time on a busy machine
    "precision": [*PYTHON, "pytest", "-m", "precision and not slow and not gpu and not dist and not bench"],
}
SLOW = [*PYTHON, "pytest", "-m", "slow and not gpu and not bench"]
WITHOUT_BF16 = {"MMTUNE_BF16": "0"}
"""`precision: auto` then means fp32, as on a machine without bf16 instructions."""


def run(name: str, command: list[str]) -> int:
    """Run one check; returns its exit status, and prints how long it took."""
    print(f"--- {name}: {' '.join(command)}", flush=True)
    begin = time.monotonic()
    environment = {**os.environ, **(WITHOUT_BF16 if name == "precision" else {})}
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    print(f"--- {name}: {'passed' if status == 0 else f'FAILED ({status})'} in {time.monotonic() - begin:.0f} s", flush=True)
    return status


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when every check passed, else that of the first that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="also the slow tests")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {', '.join(CHECKS)}, separated by commas")
    args = parser.parse_args(arguments)
    names = args.only.split(",") if args.only else [*CHECKS]
    unknown = [n for n in names if n not in CHECKS]
    if unknown:
        parser.error(f"--only {unknown[0]}: known are {', '.join(CHECKS)}")
    checks = {n: CHECKS[n] for n in names} | ({"slow": SLOW} if args.slow else {})
    return next((status for name, command in checks.items() if (status := run(name, command))), 0)


if __name__ == "__main__":
    sys.exit(main())
