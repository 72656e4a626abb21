"""`study.json`, the results of a study so far, and `winner.py`, its winner as a config file."""

import hashlib
import json
import pprint
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_collections

from linseed.trainer import checksum, files
from linseed.trainer.config import canonical
from linseed.trainer.errors import WorkdirError
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.tuning.search import Phase
from linseed.trainer.tuning.space import RATE_AND_DECAY, Point, Space

STUDY = "study.json"
WINNER = "winner.py"
PAGE = "study.html"
STORAGE = "trials.db"
SEARCH = "search"  # of the search space: the flags `--search`; earlier versions have none
SEARCHED = ("search", "final")  # the phases whose trials differ in further keys

STATES = {"WAITING": "running", "RUNNING": "running", "COMPLETE": "complete", "PRUNED": "dropped", "FAIL": "failed"}

_WINNER = '''"""The winner of a hyperparameter study{of}: {figures}.

Changed by the study:
{changes}

    linseed train --config={path} --workdir=runs/winner
"""

import ml_collections


def get_config():
    return ml_collections.ConfigDict(
{literal}
    )
'''


def _part(phase, group):
    """The part of the page that shows the trials of `group`."""
    if group == "own decay":  # apart from the rates, whose decay is small
        return group
    return group.partition("-")[0] if phase == "search" else phase


def searched(workdir: Path) -> list[str] | None:
    """The `--search` that the study in `workdir` began with; None without a study that can be read."""
    record = checksum.loads_or_old(files.read(workdir / STUDY) or b"")
    return None if record is None else record.get("search_space", {}).get(SEARCH, [])


class Study:
    """The record of the study in `workdir`: a JSON object, rewritten after each change."""

    def __init__(self, workdir: Path, config: ml_collections.ConfigDict, *, name: str, search_space: dict):
        """Opens the study in `workdir`, or starts one. Raises WorkdirError if it has another config or search space."""
        self.workdir, self.config = workdir, config
        self._path = workdir / STUDY
        sha256 = canonical.sha256(config)
        new = {
            "search_space": search_space,
            "config_name": name,
            "config": json.loads(canonical.to_json(config)),
            "config_sha256": sha256,
            "worker": uuid.uuid4().hex,
            "seconds_used": 0.0,  # over all runs of the command
            "steps": [],
            "trials": [],
            "next": [],
        }
        content = files.read(self._path)
        self.record = new if content is None else checksum.loads_or_old(content)
        if self.record is None or not new.keys() <= self.record.keys():
            raise WorkdirError(
                f"{self._path} is damaged: it is not what was written; delete it and run the same command again: "
                f"{STORAGE} keeps the trials, and only the time used so far is forgotten"
            )
        if content is not None:
            if self.record["config_sha256"] != sha256:
                changed = canonical.differences(ml_collections.ConfigDict(self.record["config"]), config)
                raise WorkdirError(
                    f"{workdir} holds a study of another config ({'; '.join(changed[:6])}); choose another --workdir"
                )
            if self.record["search_space"] != search_space:
                raise WorkdirError(
                    f"{workdir} holds a study with other --rates, --decays, --sampler or --search "
                    f"({self.record['search_space']}); choose another --workdir, or give the same flags"
                )
        self._began = time.monotonic() - self.record["seconds_used"]

    def save(self, **changes: Any):
        """Sets the keys of `changes` and the time used, and writes the record."""
        self.record.update(changes, seconds_used=time.monotonic() - self._began)
        workdir_lib.write_sealed(self._path, self.record)

    def step(self, name: str) -> dict | None:
        """The entry of the step `name`, or None."""
        return next((step for step in self.record["steps"] if step["name"] == name), None)

    def add_step(self, number: int, name: str, title: str, *, summary: str, findings: list, **more: Any):
        """Records the result of a step, in place of an earlier one of that name."""
        entry = {
            "step": number,
            "name": name,
            "title": title,
            "ok": not findings,
            "summary": summary,
            "findings": [finding._asdict() for finding in findings],
            **more,
        }
        others = [step for step in self.record["steps"] if step["name"] != name]
        self.save(steps=sorted([*others, entry], key=lambda step: (step["step"], step["name"])))

    @property
    def identity(self) -> str:
        """What the machines that share a storage must have in common: the config and the further keys, as a hash."""
        sha256, further = self.record["config_sha256"], self.record["search_space"].get(SEARCH)
        return hashlib.sha256(json.dumps([sha256, further]).encode()).hexdigest() if further else sha256

    def note_trials(self, phases: Iterable[Phase], *, an_epoch: float, space: Space):
        """Records the trials of `phases`, as the page shows them. an_epoch: its length in steps."""
        config = self.record["config"]
        entries = [
            {
                "id": trial.id,
                "phase": _part(phase.name, trial.attributes["group"]),
                "workdir": trial.workdir,
                **self.said_of(trial.point, space if phase.name in SEARCHED else {}),
                "seed": config["seed"],
                "schedule": config["schedule"]["name"] if phase.name == "final" else "constant",
                "state": STATES[trial.state.name],
                "reason": trial.attributes.get("reason", trial.last.failed),
                "rungs": [
                    {"steps": steps, "epochs": steps / an_epoch, **outcome._asdict()}
                    for steps, outcome in sorted(trial.rungs.items())
                ],
                "seconds": trial.last.seconds,
            }
            for phase in phases
            for trial in phase.trials()
        ]
        self.save(trials=entries)

    def said_of(self, point: Point, space: Space) -> dict[str, Any]:
        """A point as an entry has it: rate and decay, and the keys of `space` apart, the config's own if not drawn."""
        own = dict(canonical.flatten(self.record["config"]))
        further = {key: point.get(key, own[key]) for key in space}
        return {key: point[key] for key in RATE_AND_DECAY} | ({"further": further} if further else {})

    def write_winner(self, config: ml_collections.ConfigDict, *, figures: str) -> list[str]:
        """Writes `config` as a config file; returns its differences from the study's config."""
        differences = canonical.differences(self.config, config)
        literal = pprint.pformat(config.to_dict(), width=110, sort_dicts=False)
        text = _WINNER.format(
            of=f" of {self.record['config_name']}",
            figures=figures,
            changes="\n".join(f"- {line}" for line in differences) or "- nothing",
            path=self.workdir / WINNER,
            literal="\n".join(" " * 8 + line for line in literal.splitlines()),
        )
        files.write(self.workdir / WINNER, text)
        return differences
