"""The page of a run: whole, self-contained, and free to hold any text."""

import json

from linseed.trainer.run import report

RESULT = {
    "best_step": 2,
    "steps": 3,
    "stop_reason": "horizon reached",
    "val": {"accuracy": 0.5, "loss": 1.0, "examples": 10},
    "test": {"accuracy": 0.25, "loss": 2.0, "examples": 20},
    "test_openings": 1,
    "params_sha256": "aa",
    "best_params_sha256": "bb",
    "config_sha256": "cc",
    "seconds": 12.0,
    "images_per_second": None,
    "devices": ["<cpu>"],
    "versions": {"jax": "0"},
}


SCORES = {
    "accuracy_interval": [0.25, 0.75],
    "balanced_accuracy": 0.4375,
    "balanced_accuracy_interval": [0.125, 0.875],
    "majority_share": 0.625,
}


def record(step):
    return {"step": step, "epoch": step / 2, "train_loss": 1.0, "train_accuracy": 0.5, "lr": 0.1} | (
        {"val_loss": 1.0, "val_accuracy": 0.5} if step != 1 else {}
    )


def write(workdir, result):
    (workdir / "result.json").write_text(json.dumps(result))
    (workdir / "config.json").write_text(json.dumps({"model": {"name": "<b>net"}, "data": {"source": {"name": "npz"}}}))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(record(step)) + "\n" for step in (1, 2, 3)))
    report.write(workdir)
    return (workdir / "report.html").read_text()


def test_page_holds_the_result_and_the_curves_and_nothing_from_elsewhere(tmp_path):
    page = write(tmp_path, RESULT)
    for text in ("25.00 %", "50.00 %", "<svg", "horizon reached", "&lt;cpu&gt;", "&lt;b&gt;net on npz"):
        assert text in page
    for outside in ("<script", "<link", "<img"):
        assert outside not in page


def test_the_majority_class_and_the_balanced_accuracy_stand_beside_the_accuracy(tmp_path):
    whole = {**RESULT, "monitor": "balanced_accuracy"}
    whole |= {split: {**RESULT[split], **SCORES} for split in ("val", "test")}
    page = write(tmp_path, whole)
    for text in ("62.50 %", "43.75 %", "25.00 to 75.00 %", "12.50 to 87.50 %", "by val balanced accuracy"):
        assert text in page
    assert page.count("–") == 0 and write(tmp_path, RESULT).count("–") == 8  # of an earlier version


def test_the_best_snapshot_is_marked_on_the_accuracy():
    figure = report.draw_curves([record(step) for step in (1, 2, 3)], best_step=2)
    loss, accuracy, rate = figure.axes
    marked = [line for line in accuracy.get_lines() if line.get_label() == "best checkpoint"]
    assert [tuple(point) for point in marked[0].get_xydata()] == [(1.0, 0.5)]
    assert rate.get_ylim()[0] == 0 and len(loss.get_lines()) == 2
