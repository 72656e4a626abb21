"""Estimates a run's cost before you start it: parameters, FLOPs, memory, time, disk, schedule, parameter rules.

    linseed doctor --config=digits --workdir=runs/digits --out=runs/doctor

Compiles the train step and times a few steps. It opens no test split and writes nothing into the workdir.
"""

from datetime import timedelta
from pathlib import Path

from absl import flags

from linseed.scripts.cli import command, compile_cache, config_flag

WORKDIR = command.define_path("workdir", None, "Folder of the run, started or not: for what is left, and disk space.")
OUT = command.define_path("out", None, "Folder to write schedule.svg into.")
STEPS = flags.DEFINE_integer("steps", 7, "How many steps to time; the median is reported.", lower_bound=1)
TIME_LIMIT = flags.DEFINE_float("time_limit", 30.0, "Seconds after which no further step is timed.", lower_bound=0.0)
MEMORY = flags.DEFINE_string(
    "memory", None, "Memory of a device, such as 8GiB, to find the largest batch for; none: what the device reports."
)
PICTURE_ROWS = 21
UNITS = {"": 1, "B": 1} | {
    f"{prefix}{kind}": base**power
    for kind, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("K", "M", "G", "T"), start=1)
}


def main(console):
    workdir = Path(WORKDIR.value) if WORKDIR.value else None
    config = config_flag.load()
    compile_cache.use(workdir=workdir)
    from linseed.trainer.cost.forecast import forecast
    from linseed.trainer.run.console import for_console

    with console.status("reading the data, compiling, timing"):
        found = forecast(
            config,
            workdir=workdir,
            timed_steps=STEPS.value,
            time_limit=TIME_LIMIT.value,
            memory_limit=_memory_limit(),
        )
    say = for_console(console).say
    say(found.description)
    console.print(_rules(found.assignments))
    console.print(_schedule(found.rates, steps_per_epoch=found.steps.per_epoch))
    console.print(_parameters(found.parameters))
    console.print(_figures("steps", _steps(found.steps)))
    console.print(_figures("compute and memory", [*_flops(found), *_memory(found.memory), *_room(found.room)]))
    console.print(_figures("time", _time(found)))
    console.print(_figures("checkpoints on disk", _disk(found.disk)))
    for line in _remarks(found, config):
        say(line)
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
        path = Path(OUT.value) / "schedule.svg"
        draw_schedule(found.rates, steps_per_epoch=found.steps.per_epoch).savefig(path)
        say(f"schedule: {path}")


def _memory_limit():
    """The bytes of --memory, None if not given."""
    import re

    from linseed.trainer.errors import ConfigError

    if MEMORY.value is None:
        return None
    found = re.fullmatch(r"([0-9.]+) *([A-Za-z]*)", MEMORY.value)
    try:
        limit = int(float(found[1]) * UNITS[found[2]])
    except (TypeError, ValueError, KeyError):
        limit = 0
    if limit <= 0:
        raise ConfigError(f"--memory={MEMORY.value} should be bytes above 0, such as 8GiB or 500MB")
    return limit


def draw_schedule(rates, *, steps_per_epoch):
    """The learning rate over epochs: a matplotlib Figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates.steps / steps_per_epoch, rates.lr, "k")
    axes.set(xlabel="epoch", title="learning rate" + " at most" * rates.at_most, ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    return figure


def _table(title, *columns, right=()):
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _figures(title, rows):
    table = _table(title, "what", "how much", "note", right=("how much",))
    for row in rows:
        table.add_row(*row)
    return table


def _rules(assignments):
    from rich.text import Text

    table = _table(
        "which rule matches which parameter",
        "path",
        "shape",
        "rule",
        "lr x",
        "decay x",
        "frozen",
        right=("lr x", "decay x"),
    )
    for found in assignments:
        table.add_row(
            Text(found.path),  # Text: brackets in a pattern are not markup
            "x".join(map(str, found.shape)) or "scalar",
            Text(found.pattern),
            f"{found.lr:g}",
            f"{found.decay:g}",
            "frozen" if found.frozen else "",
        )
    return table


def _schedule(rates, *, steps_per_epoch):
    import numpy as np
    from rich.bar import Bar

    table = _table(
        "learning rate" + " at most" * rates.at_most, "step", "epoch", "lr", "", right=("step", "epoch", "lr")
    )
    rows = np.linspace(0, len(rates.steps) - 1, PICTURE_ROWS).round().astype(int)
    rows = np.union1d(rows, np.argmax(rates.lr))
    top = float(rates.lr.max())
    for step, lr in zip(rates.steps[rows].tolist(), rates.lr[rows].tolist(), strict=True):
        table.add_row(f"{step:,}", f"{step / steps_per_epoch:.2f}", f"{lr:.3g}", Bar(top, 0, lr, width=36))
    return table


def _parameters(counts):
    total = sum(counts.values())
    table = _table("parameters", "module", "parameters", "share", right=("parameters", "share"))
    for name, count in counts.items():
        table.add_row(name, f"{count:,}", f"{count / total:.1%}")
    table.add_section()
    table.add_row("total", f"{total:,}", "")
    return table


def _steps(steps):
    yield "the whole run", f"{steps.total:,}", f"{steps.total / steps.per_epoch:,.2f} epochs"
    yield "an epoch", f"{steps.per_epoch:,.1f}", ""
    yield "warm-up", f"{steps.warmup:,}", f"{steps.warmup / steps.total:.1%} of the run"
    yield "evaluations", f"{steps.evaluations(after=0):,}", f"every {steps.eval_every:,} steps, and at the end"


def _flops(found):
    step, total = found.flops.step, found.steps.total
    if step is None:
        yield "a train step", "not counted", "this backend has no cost analysis"
        return
    note = "XLA's count, all devices" + ("; see below" if found.flops.missing else "")
    yield "a train step", _unit(step, "FLOP"), note
    yield "the whole run", _unit(step * total, "FLOP"), f"{total:,} train steps; evaluation not counted"
    yield "speed", _unit(step / found.seconds.step, "FLOP/s"), "as measured"


def _memory(memory):
    limit = "the device reports no limit" if memory.limit is None else f"of {_bytes(memory.limit)}"
    if memory.peak is None:
        yield "device", "unknown", f"this backend does not analyse its memory; {limit}"
    else:
        yield "device: arguments", _bytes(memory.arguments), "state and one batch, on each device"
        yield "device: temporaries", _bytes(memory.temporaries), "of a train step"
        yield "device: a step in total", _bytes(memory.peak), limit
    yield "state", _bytes(memory.state), "parameters, optimiser, averages"
    yield "data set on the host", _bytes(memory.data), "train and validation"


def _room(room):
    if room is None:
        return
    of = f"of {_bytes(room.limit)}; {room.compiled} sizes compiled"
    if not room.batch:
        yield "largest batch", "none", "even the smallest batch does not fit"
    else:
        note = f"{room.per_device:,} on each device" + ("; all of the train split" if room.all_of_train else "")
        yield "largest batch", f"{room.batch:,}", note
    yield "device: a run with it", _bytes(room.bytes), of


def _time(found):
    steps, seconds, after = found.steps, found.seconds, found.standing.step
    yield "start", _clock(found.start), "reading data, building"
    yield "compile", _clock(seconds.compile), "train and eval step"
    yield "a train step", _clock(seconds.step), f"median of {seconds.timed}"
    yield "an evaluation", _clock(seconds.evaluation), "all of validation, from one batch"
    note = f"{steps.total:,} steps, {steps.evaluations(after=0):,} evaluations"
    yield "the whole run", _clock(found.run_seconds(after=0)), note
    if found.standing.status == "under way":
        note = f"from step {after:,}: {steps.total - after:,} steps, {steps.evaluations(after=after):,} evaluations"
        yield "the rest of the run", _clock(found.run_seconds(after=after)), note


def _disk(disk):
    yield "one checkpoint", _bytes(disk.checkpoint), "uncompressed"
    yield "all at once", _bytes(disk.needed), f"{disk.count} of them: latest, best, and one being written"
    if disk.free is None:
        yield "free", "unknown", "pass --workdir to check its disk"
    else:
        yield "already used", _bytes(disk.present), "in the workdir"
        yield "free", _bytes(disk.free), "on the disk of the workdir"


def _remarks(found, config):
    """Remarks that fit no table, one line each."""
    for missing in found.flops.missing:
        yield f"FLOPs leave out {missing}"
    yield "the time leaves out saving checkpoints and the test split, which stays sealed" + (
        "; early stopping may end the run earlier" if config.early_stopping.patience else ""
    )
    memory, disk, standing = found.memory, found.disk, found.standing
    if found.room is None and config.data.batch_size:
        yield "no largest batch: the device reports no memory limit; pass it, as in --memory=8GiB"
    if memory.limit is not None and memory.peak is not None and memory.peak > memory.limit:
        yield "warning: a train step needs more memory than a device has; lower config.data.batch_size"
    if not disk.fits:
        yield (
            f"warning: checkpoints need {_bytes(disk.needed - disk.present)} more and the disk of {WORKDIR.value} has "
            f"{_bytes(disk.free)}; free some space, lower config.checkpoint.keep_latest, or choose another --workdir"
        )
    if standing.status == "finished":
        yield f"{WORKDIR.value} holds this run, finished"
    if standing.status == "of another config":
        changed = "; ".join(standing.changed[:6]) + ("; ..." if len(standing.changed) > 6 else "")
        yield f"warning: {WORKDIR.value} holds a run of another config ({changed}); choose another --workdir"


def _bytes(count):
    from rich import filesize

    return filesize.decimal(count)


def _unit(value, unit):
    from matplotlib.ticker import EngFormatter

    return EngFormatter(unit=unit, places=1)(value)


def _clock(seconds):
    return _unit(seconds, "s") if seconds < 60 else str(timedelta(seconds=round(seconds)))


def run():
    command.run(main, needs=("config",))


if __name__ == "__main__":
    run()
