"""Trains a config into a workdir; run it again to resume.

linseed train --config=digits --workdir=runs/digits --config.optimizer.lr=0.001

SIGTERM, SIGINT and SIGUSR1 stop the run after the current step, which is saved; a second one stops it at once. Exit
status: 0 done; 2 an error, whose line says how to fix it; 143, 130 or 138 stopped by one of these signals, to be run
again; 75 another process of the run died, to be run again on all machines; 1 anything else, including the watchdog.
Several processes, on one machine or many: docs/launch.md.
"""

from pathlib import Path

from absl import flags

from linseed.scripts.cli import command, compile_cache, config_flag
from linseed.trainer.runtime import xla_flags

WORKDIR = command.define_path("workdir", None, "Folder of this run: checkpoints, metrics, result.")
ON_CONFIG_CHANGE = flags.DEFINE_enum(
    "on_config_change", "refuse", ["refuse", "accept"], "What to do if the workdir holds a run of another config."
)
JUDGE = flags.DEFINE_enum(
    "judge",
    "val,test",
    ["val", "val,test"],
    "What to evaluate the best checkpoint on. 'val' leaves test sealed: to compare configs.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "auto",
    "HOST:PORT of process 0, the same for all; 'auto': ask Slurm, Open MPI up to 4, a TPU pod or Kubernetes; "
    "'none': a single process.",
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: number of processes.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: this process, from 0.", lower_bound=0)
START_SECONDS = flags.DEFINE_integer("start_seconds", 300, "Seconds to wait for the others to start.", lower_bound=1)
HEARTBEAT_SECONDS = flags.DEFINE_integer(
    "heartbeat_seconds", 30, "Seconds without a heartbeat from a process, after which all exit.", lower_bound=2
)


def main(console):
    config, workdir = config_flag.load(), Path(WORKDIR.value)
    if config.deterministic:
        xla_flags.use_deterministic_ops()  # joining the others starts JAX
    compile_cache.use(workdir=workdir)
    from linseed.trainer.runtime import join

    with join.joined(
        COORDINATOR.value,
        num_processes=NUM_PROCESSES.value,
        process_id=PROCESS_ID.value,
        start_seconds=START_SECONDS.value,
        heartbeat_seconds=HEARTBEAT_SECONDS.value,
    ):
        train_in(workdir, config, console)


def train_in(workdir, config, console):
    from linseed.trainer import train
    from linseed.trainer.run.console import Quiet, for_console, summary
    from linseed.trainer.runtime import processes, signals

    writer = for_console(console) if processes.is_writer() else Quiet()
    with signals.on_signals(command.tell) as stop:
        result = train.train_and_evaluate(
            config,
            workdir,
            writer=writer,
            on_config_change=ON_CONFIG_CHANGE.value,
            judge=JUDGE.value.split(","),
            stop=stop,
        )
    if not processes.is_writer():
        return
    console.print(summary(result))
    writer.say(
        f"best step {result['best_step']:,} of {result['steps']:,} ({result['stop_reason']}); test opened "
        f"{result['test_openings']} time(s)"
    )
    made = {"result": "result.json", "report": "report.html", "model": "model.linseed"}
    there = {what: workdir / name for what, name in made.items() if (workdir / name).exists()}
    writer.say("  ".join(f"{what}: {path}" for what, path in there.items()))


def run():
    command.run(main, needs=("config", "workdir"))


if __name__ == "__main__":
    run()
