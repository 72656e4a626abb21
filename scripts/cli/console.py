"""The console of every command."""

import contextlib

from rich import console


class Console(console.Console):
    """Rich's console, silenced by a broken pipe (`| head`, a dead `tee`): the run goes on without its output."""

    def on_broken_pipe(self):
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()  # silent from now on; Python's final flush goes to /dev/null
