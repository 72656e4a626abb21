"""The page of a run: whole, self-contained, and free to hold any text."""

import json

import pytest

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


def finished(tmp_path, result=RESULT):
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.json").write_text(
        json.dumps({"model": {"name": "<b>net"}, "optimizer": {}, "data": {"source": {"name": "npz"}}})
    )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record(step)) + "\n" for step in (1, 2, 3)))


@pytest.mark.parametrize(
    "change", [(b"train_loss", b"train_lozs"), (b'"lr": 0.1', b'"lr": "a"'), (b"{", b"["), (b"epoch", b"\xff\x00")]
)
@pytest.mark.parametrize("line", [0, 2])
def test_a_damaged_record_costs_its_point_and_not_the_page(tmp_path, change, line):
    finished(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(*change)
    path.write_bytes(b"".join(lines))
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page and ("metrics.jsonl is damaged" in page) == (change[0] in (b"{", b"epoch"))


def test_lost_records_are_said_on_the_page(tmp_path):
    finished(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    report.write(tmp_path)
    assert "metrics.jsonl is damaged: the curves lack some records" in (tmp_path / "report.html").read_text()


def write(workdir, result):
    finished(workdir, result)
    report.write(workdir)
    return (workdir / "report.html").read_text()


def test_page_holds_the_result_and_the_curves_and_nothing_from_elsewhere(tmp_path):
    page = write(tmp_path, RESULT)
    assert "is damaged" not in page
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


def test_the_best_checkpoint_is_marked_on_the_accuracy():
    figure = report.draw_curves([record(step) for step in (1, 2, 3)], best_step=2)
    loss, accuracy, rate = figure.axes
    marked = [line for line in accuracy.get_lines() if line.get_label() == "best checkpoint"]
    assert [tuple(point) for point in marked[0].get_xydata()] == [(1.0, 0.5)]
    assert rate.get_ylim()[0] == 0 and len(loss.get_lines()) == 2
