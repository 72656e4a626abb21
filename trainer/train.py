"""The training loop: the only one.

An experiment (see `trainer.experiment`) -> state, new or restored -> batches, steps, evaluations, records, checkpoints
-> the best checkpoint restored -> the test split opened, once -> result.json.
"""

import collections
import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from linseed.trainer import resume
from linseed.trainer.config import canonical
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import NonFiniteError
from linseed.trainer.evaluation import evaluate_best
from linseed.trainer.experiment import Shared, build
from linseed.trainer.report import write as report
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.recorder import Recorder
from linseed.trainer.run.rollback import Rollbacks
from linseed.trainer.run.terms import terms
from linseed.trainer.run.windows import Windows
from linseed.trainer.runtime import processes, signals, watchdog
from linseed.trainer.step import state as state_lib
from linseed.trainer.step.multi_step import first_carry, settled, stacked

# Calls of the train step that may be under way: enough to keep the devices busy while the host logs and saves, few
# enough for their batches to fit into memory.
AHEAD = 4


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: Path,
    *,
    writer: Quiet,
    on_config_change: str,
    judge: Sequence[str] = ("val", "test"),
    model_file: bool = True,
    shared: Shared | None = None,
    stop: Callable[[], int] = signals.never,
) -> dict[str, Any]:
    """Trains `config` in `workdir` and returns what `result.json` holds.

    Called again with the same arguments, it goes on where it was. The parameters at the end are bit for bit those of a
    run that was never interrupted. A finished run is not run again.

    writer: shows the run to the user.
    on_config_change: "refuse" or "accept", for a workdir that holds a run of another config.
    judge: the splits on which the best checkpoint is evaluated. Without "test" that split stays sealed, and
    `result.json` has None for it.
    model_file: whether the best checkpoint is also written as `model.linseed`, see `portable.model_file`.
    shared: data and compiled steps that the runs of this process share.
    stop: returns 0, or a signal's number from the moment on at which the run is to stop. It is asked before each call
    of the devices, and once before the test split is opened. The run then saves the step that it reached and raises
    `signals.Stopped`.

    Raises a LinseedError, whose message is one line, for everything that a user can fix.
    """
    started = time.monotonic()
    config = resolve(config)
    with processes.workdir_of(workdir) as workdir, workdir_lib.lock(workdir):
        processes.agreed(lambda: None, facts=lambda _: terms(config, judge=judge, on_config_change=on_config_change))
        changed, result = resume.inspect(workdir, config, on_config_change=on_config_change)
        finished = bool(result and (result["test"] or "test" not in judge))
        if finished and not changed:
            writer.say(f"already finished: {workdir / workdir_lib.RESULT}")
        else:
            experiment = build(config, workdir, shared=shared or Shared())
            writer.say(experiment.description)
            stop = processes.AgreedStop(stop, ahead=AHEAD)
            with (
                watchdog.watched(config.guard.watchdog_minutes) as alive,
                resume.open_checkpoints(workdir, config) as checkpoints,
            ):
                state, progress = _train_with_rollbacks(
                    config,
                    experiment,
                    workdir,
                    changed=changed,
                    finished=finished,
                    on_config_change=on_config_change,
                    checkpoints=checkpoints,
                    writer=writer,
                    started=started,
                    stop=stop,
                    alive=alive,
                )
                if number := stop.last():
                    raise signals.Stopped(number, after_step=int(state.step))
                alive(compiles=True)
                result = evaluate_best(
                    experiment,
                    checkpoints,
                    config=config,
                    workdir=workdir,
                    model_file=model_file,
                    state=state,
                    progress=progress,
                    judge=judge,
                    writer=writer,
                )
            result["config_sha256"] = canonical.sha256(config)
            workdir_lib.write_sealed(workdir / workdir_lib.RESULT, result)
        return processes.from_writer(lambda: report.recount(workdir))


def _train_with_rollbacks(
    config, experiment, workdir, *, changed, finished, on_config_change, checkpoints, writer, started, stop, alive
):
    """Trains to the end, and from an earlier checkpoint again as often as `config.guard` allows.

    Returns the last state, on the devices, and progress.
    """
    section = {key: config.guard[key] for key in ("on_non_finite", "max_times", "lr_factor")}
    rollbacks = Rollbacks(workdir / workdir_lib.ROLLBACKS, **section)
    if changed and not checkpoints.steps():
        rollbacks.forget()
    while True:
        alive(compiles=True)
        state, progress = resume.restore(
            experiment,
            checkpoints,
            rollbacks=rollbacks,
            writer=writer,
            changed=changed,
            on_config_change=on_config_change,
        )
        step, total_steps = int(state.step), experiment.total_steps - progress.shift
        if changed:
            patience = config.early_stopping.patience
            resume.check_goes_on(
                workdir, step=step, total_steps=total_steps, progress=progress, patience=patience, finished=finished
            )
        workdir_lib.write_config(workdir, config)
        recorder = Recorder(
            config,
            progress=progress,
            step=step,
            windows=Windows(config.log_every_steps, experiment.eval_every_steps, total_steps, progress.shift),
            batch_size=experiment.batch_size,
            num_examples=len(experiment.train.labels),
            log=resume.open_log(workdir, step=step, progress=progress),
            checkpoints=checkpoints,
            writer=writer,
            page=report.Live(workdir) if processes.is_writer() else None,
            started=started,
        )
        try:
            with contextlib.closing(recorder):
                state = _train(config, experiment, recorder, state=state, stop=stop, alive=alive)
                alive()
                checkpoints.wait()
                return state, recorder.progress
        except NonFiniteError as error:
            writer.say(processes.from_writer(functools.partial(rollbacks.roll_back, checkpoints, error)))
            started = time.monotonic()  # the progress that is restored counts the seconds before


def _train(config, experiment, recorder, *, state, stop, alive):
    """The loop. Returns the last state, on the devices.

    The host runs ahead of the devices, by at most `AHEAD` calls. At the end of a window of steps the recorder takes
    over its metrics; it reads, logs and saves them while the devices are busy with the calls that follow.
    """
    parallel, feed, windows = experiment.parallel, experiment.feed, recorder.windows
    step, total_steps = int(state.step), windows.total_steps
    carry = parallel.replicate(first_carry(state, window=windows.log_every, rows=recorder.rows))
    resident = parallel.replicate(feed.resident)
    replicated_count = functools.cache(lambda count: parallel.replicate(np.int32(count)))
    calls = collections.deque()  # those under way
    evaluated = False
    recorder.writer.start(step=step, total_steps=total_steps)
    with (
        jax.transfer_guard("disallow"),
        contextlib.closing(feed.batches(step + windows.shift)) as batches,
        settled(lambda: (list(calls), recorder.waiting)),
    ):
        while step < total_steps and not recorder.is_stale() and not stop():
            alive(compiles=not calls)
            end = windows.end(step)
            count = min(config.steps_per_call, end - step)
            batch = parallel.shard(stacked([next(batches) for _ in range(count)], steps_per_call=config.steps_per_call))
            carry, call = experiment.train_steps(carry, batch, resident, replicated_count(count))
            step += count
            recorder.writer.advance(step)
            calls.append(call)
            if len(calls) > AHEAD and recorder.waits_for(jax.block_until_ready(calls.popleft())):
                recorder.flush()
            if step < end:
                continue
            recorder.flush()
            evaluation, copy, ended = None, None, None
            if windows.is_evaluated(step):
                alive(compiles=not evaluated)
                if not evaluated:  # the first evaluation is compiled, which is no training time
                    jax.block_until_ready(call)
                    ended, evaluated = time.monotonic(), True
                evaluation = experiment.evaluate.start(state_lib.evaluated_weights(carry["state"]), experiment.val)
                copy = _copy(carry["state"])  # the next call overwrites the original
            metrics = _copy(carry["window"])
            recorder.hold(step=step, metrics=metrics, call=call, evaluation=evaluation, state=copy, ended=ended)
        alive()
        recorder.flush()
        recorder.save_stopped(step=step, metrics=carry["window"], state=carry["state"])
    return carry["state"]


@jax.jit
def _copy(tree):
    return jax.tree.map(jnp.copy, tree)
