"""Trains a config into a workdir; run it again to resume.

python -m scripts.train --config=configs/digits.py --workdir=runs/digits --config.optimizer.lr=0.001

SIGTERM, SIGINT and SIGUSR1 stop it after the step under way, which is saved; a second one stops it at once. Exit
status: 0 done, 2 an error whose line says how to mend it, 143, 130 or 138 stopped by one of these signals (to be run
again), 1 anything else, among it the watchdog.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from scripts import command, compile_cache

CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py, or FILE.py:variant.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run: snapshots, metrics, result.")
ON_CONFIG_CHANGE = flags.DEFINE_enum(
    "on_config_change", "refuse", ["refuse", "accept"], "What to do where the workdir holds a run of another config."
)


def main(console):
    workdir = Path(WORKDIR.value)
    compile_cache.use(workdir=workdir)
    from trainer import stopping, train, writers

    writer = writers.for_console(console)
    with stopping.on_signals(command.tell) as stop:
        result = train.train_and_evaluate(
            CONFIG.value, workdir, writer=writer, on_config_change=ON_CONFIG_CHANGE.value, stop=stop
        )
    console.print(writers.summary(result))
    writer.say(
        f"best step {result['best_step']:,} of {result['steps']:,} ({result['stop_reason']}); test opened "
        f"{result['test_openings']} time(s)"
    )
    writer.say(f"result: {workdir / 'result.json'}  report: {workdir / 'report.html'}")


if __name__ == "__main__":
    command.run(main, needs=("config", "workdir"))
