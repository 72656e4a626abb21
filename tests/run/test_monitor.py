"""The monitor chooses the best checkpoint, and a run keeps it."""

import pytest
from support.runs import Killer, Stop, records, run, tiny

from linseed.trainer import evaluation
from linseed.trainer.errors import WorkdirError
from linseed.trainer.step.scores import MONITORS, score


@pytest.mark.parametrize("monitor", MONITORS)
def test_the_best_checkpoint_is_best_by_the_monitor_also_after_a_kill(tmp_path, monitor):
    config = tiny(**{"eval.monitor": monitor, "ema_decay": 0.0})
    with pytest.raises(Stop):
        run(config, tmp_path, writer=Killer(15))
    result = run(config, tmp_path)
    judged = [
        ({key.removeprefix("val_"): value for key, value in record.items() if key.startswith("val_")}, record["step"])
        for record in records(tmp_path)
        if "val_loss" in record
    ]
    best, step = max(judged, key=lambda pair: (score(pair[0], monitor), pair[1]))
    assert (result["best_step"], result["monitor"]) == (step, monitor)
    assert {key: result["val"][key] for key in best} == best
    found = evaluation.evaluate_checkpoint(tmp_path, which="best", split="val")
    assert found["step"] == step and {key: found[key] for key in result["val"]} == result["val"]


def test_another_monitor_judges_the_kept_checkpoints_anew(tmp_path):
    with pytest.raises(Stop):
        run(tiny(ema_decay=0.0), tmp_path, writer=Killer(15))
    config = tiny(**{"eval.monitor": "loss", "ema_decay": 0.0})
    with pytest.raises(WorkdirError, match="eval.monitor: accuracy -> loss"):
        run(config, tmp_path)
    result = run(config, tmp_path, on_config_change="accept")
    last = records(tmp_path)[-1]
    assert result["monitor"] == "loss" and result["val"]["loss"] <= last["val_loss"]
