"""The console of every command."""

import contextlib

from rich import console


class Console(console.Console):
    """Rich's, which goes quiet once nobody reads (`| head`, a dead `tee`): a run is worth more than its output."""

    def on_broken_pipe(self):
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()  # quiet from here on, and Python's own flush at the end goes nowhere
