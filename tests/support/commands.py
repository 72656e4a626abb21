"""Commands as a user calls them in a clone."""

from support import forked


def command(module, *arguments):
    return forked.run(["-m", f"scripts.{module}", *arguments])


def refusal(module, *arguments):
    done = command(module, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]
