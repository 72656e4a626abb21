"""Proves that a config's run, killed and resumed, equals one that was never stopped, bit for bit.

    linseed verify-resume --config=digits --kills=3

Trains twice, shortened to --steps. One run is never stopped. The other is killed (SIGKILL) at random moments and
started again by the same command until it is done; a kill that comes too late is tried again, earlier. Compares the
hashes of the parameters and every record of metrics.jsonl. Exit status 0: equal; 1: different, naming the first array
that differs; 2: not comparable, or no kill came in time, and the line says why.
"""

import contextlib
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import flags
from rich.table import Table

from linseed.scripts.cli import command, config_flag
from linseed.trainer.config.changes import changed

KILLS = flags.DEFINE_integer("kills", 3, "How often to kill the second run.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 24, "The length of both runs and their schedules.", lower_bound=4)
WORKDIR = command.define_path("workdir", None, "An empty folder that keeps the two runs; none: they are deleted.")


def shortened(config, *, steps: int):
    """`config` shortened to `steps` steps, with four evaluations and checkpoints and eight log records."""
    from linseed.trainer.data import sources, splits
    from linseed.trainer.optim.schedules import durations_to_steps
    from linseed.trainer.tuning import trials

    section = config.data
    train, _ = splits.carve_validation(
        sources.load(**section.source), fraction=section.val_fraction, seed=section.split_seed
    )
    num_examples = section.train_examples or len(train.labels)
    plain = changed(config, {"data.batch_size": section.batch_size or num_examples})
    length = dict(num_examples=num_examples, batch_size=plain.data.batch_size, total_steps=None)
    total_steps = max(1, durations_to_steps("horizon", config.horizon, **length)["steps"])
    steps = min(steps, total_steps)
    short = trials.shortened(plain, steps=steps, total_steps=total_steps, num_examples=num_examples)
    evaluation = {key: value for key, value in config.eval.items() if not key.startswith("every_")}
    every = max(1, steps // 4)
    return changed(
        short,
        {
            "data.batch_size": section.batch_size,
            "eval": {"every_steps": every, **evaluation},
            "log_every_steps": max(1, every // 2),
        },
    )


def killed_at(moment, config, workdir):
    """Starts the run in `workdir` and kills it at `moment`; returns it, or None if it always ended before.

    A run that ended before is repeated from the same files and killed earlier. Raises LinseedError if it failed.
    """
    from linseed.scripts.cli import moments

    before = workdir.with_name("before")
    for seconds in (moment.seconds, moment.seconds / 4, 0.0):
        if workdir.exists():
            shutil.copytree(workdir, before)
        run = moments.Run(config, workdir)
        in_time = run.end_at(moment._replace(seconds=seconds), by=signal.SIGKILL)
        if in_time:
            shutil.rmtree(before, ignore_errors=True)
            return run
        run.finish()  # raises if the run failed
        shutil.rmtree(workdir)
        if before.exists():
            before.rename(workdir)
    return None


def main(console):
    from linseed.scripts.cli import moments
    from linseed.trainer.errors import LinseedError, WorkdirError
    from linseed.trainer.run.compare import differences
    from linseed.trainer.run.workdir import read_result

    config = shortened(config_flag.load(), steps=STEPS.value)
    with contextlib.ExitStack() as stack:
        folder = Path(WORKDIR.value or stack.enter_context(tempfile.TemporaryDirectory(prefix="verify_resume_")))
        if folder.exists() and any(folder.iterdir()):
            raise WorkdirError(f"{folder} is not empty; choose another --workdir")
        straight, killed = folder / "straight", folder / "killed"
        timeline = moments.Run(config, straight).timeline()
        rng = np.random.default_rng()
        table = Table("start", "resumed after", "ended", "stage", "records logged")

        def add(run, ended, stage):
            resumed_after, logged = str(run.resumed_after() or ""), str(len(run.records()))
            table.add_row(str(table.row_count + 1), resumed_after, ended, stage, logged)

        for moment in moments.draw(KILLS.value, timeline=timeline, rng=rng):
            if run := killed_at(moment, config, killed):
                add(run, "killed", moment.stage)
        landed = table.row_count
        if not landed:
            raise LinseedError(
                f"none of the {KILLS.value} kills came before the run's end, so nothing is proven; raise --steps"
            )
        run = moments.Run(config, killed)
        run.finish()
        add(run, "by itself, status 0", "")
        console.print(table)
        found = differences(straight, killed)
        result = read_result(straight)
    if not found:
        console.print(
            f"equal: {result['steps']} steps, {landed} of {KILLS.value} kills in time, the same "
            f"{timeline.records} records and parameters {result['params_sha256'][:16]}...",
            highlight=False,
            soft_wrap=True,
        )
        return
    for line in found:
        console.print(f"different: {line}", highlight=False, markup=False, soft_wrap=True)
    sys.exit(1)


def run():
    command.run(main, needs=("config",))


if __name__ == "__main__":
    run()
