"""UTF-8 for file names, files and output, whatever the locale."""

import os
import sys


def use():
    """Starts this process again in Python's UTF-8 mode (PEP 540) where the locale names another encoding.

    Call it before anything else. Processes that this one starts inherit the mode.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
