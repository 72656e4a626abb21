"""What every command shares: flags in, one-line errors out, an exit status.

0: done. 2: the user can mend it, and the line on stderr says how. 130: interrupted.
"""

import errno
import logging
import sys
from collections.abc import Callable

from absl import app, flags
from rich.console import Console

from trainer.errors import LinseedError

DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error that is otherwise one line.")


def run(main: Callable[[Console], None]):
    """Parses the flags and runs `main(console)`."""

    def guarded(argv):
        _quiet_libraries()
        console = Console()
        try:
            if len(argv) > 1:
                raise LinseedError(f"unexpected argument '{argv[1]}'; flags look like --config=FILE --workdir=DIR")
            main(console)
        except (LinseedError, OSError) as error:
            _report(error)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on from the last snapshot", file=sys.stderr)
            sys.exit(130)

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError, SyntaxError) as error:
            _report(error)
            sys.exit(2)

    app.run(guarded, flags_parser=parse)


def _report(error):
    if DEBUG.present and DEBUG.value:
        raise error
    text = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = f"the disk is full ({error.filename or 'while saving'}); free some space and run the same command again"
    print("error: " + " ".join(text.split()), file=sys.stderr)


def _quiet_libraries():
    """Our own warnings are shown; the libraries' chatter is not."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING, force=True)
    for name in ("orbax", "jax", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
