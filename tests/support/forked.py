"""Pythons that start fast: forks of a process that has imported what commands import.

For tests of what a command does. What depends on the start itself needs a process of its own: a test of imports, of
options of Python, of JAX_* variables.
"""

import atexit
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import types
import weakref
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
_context = multiprocessing.get_context("forkserver")
# None of these starts JAX's devices, whose threads would not survive a fork.
_context.set_forkserver_preload(
    [
        "linseed.scripts.cli.command",
        "linseed.trainer.train",
        "linseed.trainer.tuning.tune",
        "matplotlib.backends.backend_svg",
        "matplotlib.figure",
    ]
)


class Process:
    """As `subprocess.Popen([sys.executable, *arguments], text=True)`.

    arguments: ["-m", MODULE, ...] or ["-c", CODE, ...], after "-P" for a path without `cwd`. merged: stderr is stdout.
    """

    def __init__(self, arguments, *, cwd=ROOT, env=None, merged=False):
        folder = tempfile.mkdtemp(prefix="linseed-tests-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.args = list(map(str, arguments))
        self._outputs = [Path(folder, name) for name in (("out",) if merged else ("out", "err"))]
        for path in self._outputs:
            path.touch()
        self._process = _context.Process(
            target=_run,
            args=(self.args, str(cwd), dict(os.environ if env is None else env), self._outputs[0], self._outputs[-1]),
        )
        self._process.start()

    @property
    def returncode(self):
        return self._process.exitcode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self._process.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=None):
        """`(stdout, stderr)`, `(output, None)` if merged."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return (*(path.read_text() for path in self._outputs), None)[:2]


def run(arguments, **options):
    """As `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`."""
    process = Process(arguments, **options)
    try:
        stdout, stderr = process.communicate()
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def _run(arguments, cwd, environment, stdout, stderr):
    """What a fork does."""
    for number, path in ((1, stdout), (2, stderr)):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")
    changed = {name for name, _ in os.environ.items() ^ environment.items() if name.startswith("JAX_")}
    assert not changed, f"{changed}: read when JAX was imported; this test needs a process of its own"
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path = [path for path in sys.path if not Path(path).is_relative_to(TESTS)]
    if arguments[0] == "-P":
        arguments = arguments[1:]
    else:
        sys.path.insert(0, cwd)
    try:
        _as_main(*arguments)
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:  # which a process of multiprocessing leaves out
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()


def _as_main(option, what, *rest):
    sys.argv = [option, *rest]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(sys.modules["__main__"]))
