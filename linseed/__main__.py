"""The command `linseed`: one subcommand for each thing that it does, `linseed train --help` for each one's flags."""

import importlib
import importlib.util
import sys

from linseed import __version__

# Subcommand -> the module of scripts/ that runs it, and what it is for.
COMMANDS = {
    "train": ("train", "train a config into a folder; the same command again goes on where it was"),
    "evaluate": ("evaluate", "judge a run's checkpoint, or an ensemble of runs, on validation or test"),
    "tune": ("tune", "find better hyperparameters for a config, in the lecture's seven steps"),
    "predict": ("predict", "classify image files with a trained network, into a CSV file or JSON lines"),
    "export": ("export", "write a run's network, or the mean of several runs', to one file: to predict, or for timm"),
    "doctor": ("doctor", "what a run will cost before it is run: parameters, memory, time, disk"),
    "verify-resume": ("verify_resume", "prove that a killed and resumed run equals one that was never stopped"),
    "gallery": ("gallery.__main__", "draw what the lecture shows: optimisers, schedules, activations, augmentation"),
    "bench": ("bench.__main__", "measure this code; in a clone of the repository only"),
}


def main():
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["version"]):
        print(f"linseed {__version__}")
        return
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return
    name = arguments[0]
    if name not in COMMANDS:
        from linseed.ranges import hint

        print(f"error: unknown command '{name}'; {hint(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    module = f"linseed.scripts.{COMMANDS[name][0]}"
    if importlib.util.find_spec(module) is None:
        print(f"error: 'linseed {name}' is not in the installed package; run it in a clone", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"linseed {name}", *arguments[1:]]
    importlib.import_module(module).run()


def _help() -> str:
    lines = [f"  {name:<15}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "Linseed trains image classifiers.",
            "",
            "    linseed train --config=digits --workdir=runs/digits",
            "",
            "commands:",
            *lines,
            "",
            "linseed COMMAND --help shows the flags of a command.",
        ]
    )


if __name__ == "__main__":
    main()
