"""What every command shares: flags in, one-line errors out, an exit status.

0: done. 2: the user can mend it, and the line on stderr says how. 75: another process of the run was lost.
128 + a signal's number: stopped by it, see `trainer.runtime.signals`. After either the same command goes on.
"""

import contextlib
import errno
import logging
import re
import sys
from collections.abc import Callable

from absl import app, flags

from linseed.scripts.cli import heap
from linseed.scripts.cli.console import Console
from linseed.trainer.errors import LinseedError
from linseed.trainer.runtime import xla_flags
from linseed.trainer.runtime.signals import Stopped

DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error that is otherwise one line.")


def run(main: Callable[..., None], *, needs: tuple[str, ...] = (), argument: str = ""):
    """Parses the flags, refuses to go on without those in `needs`, and runs `main(console)`.

    argument: what the one argument without a flag is called, handed to `main` too; "" for none.
    """
    usage = _usage(needs, argument)

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
            for need in needs:
                hasattr(flags.FLAGS[need].value, "to_dict")  # a config file that failed to load says so when first used
        except Exception as error:  # absl's own errors, and whatever a config file raises
            _fail(_flag_error(error), error)
        missing = [name for name in needs if flags.FLAGS[name].value in (None, "")]
        if missing:
            _fail(f"--{missing[0]} is missing; the command is {usage}")
        if argument and len(rest) < 2:
            _fail(f"{argument} is missing; the command is {usage}")
        if len(rest) > (2 if argument else 1):
            _fail(f"unexpected argument '{rest[-1]}'; the command is {usage}")
        return rest

    def guarded(rest):
        _show_our_warnings_alone()
        heap.keep()
        xla_flags.use()
        try:
            main(Console(), *rest[1:])
        except LinseedError as error:
            _fail(str(error), error, status=error.status)
        except OSError as error:
            _fail(_one_line(error), error)
        except MemoryError as error:
            _fail("out of memory; lower config.data.batch_size, config.eval.batch_size or the image size", error)
        except Stopped as stopped:
            tell(str(stopped))
            sys.exit(stopped.status)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on from the last snapshot", file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=parse)


def tell(line: str):
    """A line for whoever waits, beside the output; nobody may."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _usage(needs, argument):
    name = sys.modules["__main__"].__spec__.name
    return " ".join([f"python -m {name}", *filter(None, [argument]), *(f"--{need}={need.upper()}" for need in needs)])


def _flag_error(error):
    """What a flag parser's error comes down to. ml_collections wraps the config file's own in a traceback or a repr."""
    text = str(error.args[0] if isinstance(error, KeyError) else error).strip()
    missing = re.search(r"No such file or directory:\s+'(.*)'", text)
    near = re.search(r'Did you mean "(.*)" instead of "(.*)"\?', text)
    if missing:
        return f"no config file at {missing[1]}; look into configs/, or check --config"
    if "Traceback" in text:
        last = text.splitlines()[-1]
        return last.partition("Error: ")[2] or f"the config file fails with {last}; look into it, or check --config"
    if near:
        return f"unknown config key '{near[2]}'; did you mean '{near[1]}'?"
    if isinstance(error, (AttributeError, KeyError)):
        return f"unknown config key {text}"
    return text


def _one_line(error):
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{place}; free some space and run the same command again, earlier snapshots are intact"
    return str(error)


def _show_our_warnings_alone():
    """What a library logs or leaves behind is for --debug; a failed save would fill the screen with it."""
    if DEBUG.value:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logging.getLogger("linseed").addHandler(handler)
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)
    sys.unraisablehook = _skip_closed_loops


def _skip_closed_loops(unraisable):
    """A save or restore that failed leaves Orbax futures that report to an event loop which is gone by then."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _fail(line, error=None, *, status=LinseedError.status):
    if error is not None and flags.FLAGS.is_parsed() and DEBUG.value:
        raise error
    print("error: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(status)
