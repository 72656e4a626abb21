"""The console of every command."""

import contextlib

from rich import console
from rich.segment import Segment


def printable(text: str) -> str:
    """`text` with "?" for all but line ends that is not printable: file names can hold commands to a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


class Console(console.Console):
    """Rich's console, silenced by a broken pipe (`| head`, a dead `tee`): the run goes on without its output.

    Of the text it shows only what is printable; the commands to the terminal are Rich's own.
    """

    def render(self, renderable, options=None):
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self):
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()  # silent from now on; Python's final flush goes to /dev/null
