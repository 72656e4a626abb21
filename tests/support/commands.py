"""Commands as a user calls them in a clone."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"scripts.{module}", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def refusal(module, *arguments):
    done = command(module, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]
