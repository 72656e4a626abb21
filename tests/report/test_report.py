"""The page of a run: whole, self-contained, and free to hold any text."""

import html.parser
import json
import logging

import numpy as np
import pytest

from linseed.trainer import checksum
from linseed.trainer.report import examples, predictions
from linseed.trainer.report import write as report

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


VOID = {"meta", "img", "br", "circle", "path", "polyline"}


class Checker(html.parser.HTMLParser):
    """Fails where an element is not closed, or closed twice."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag, (tag, self.getpos())


def written(workdir):
    report.write(workdir)
    page = (workdir / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    for outside in ("<script", "<link", 'src="http', "url("):
        assert outside not in page
    return page


def write(workdir, result):
    finished(workdir, result)
    return written(workdir)


def with_predictions(workdir, *, classes, count, channels=3, names=None, wrong=0.3, test=True):
    """A finished run of `count` images of `classes` classes, of which class 1 is never answered."""
    finished(workdir)
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int32) % classes
    logits = rng.normal(0, 1, (count, classes)).astype(np.float32)
    logits[np.arange(count), labels] += np.where(rng.random(count) < wrong, -3, 6)
    logits[:, 1] = -20
    images = rng.integers(0, 256, (count, 6, 6, channels), dtype=np.uint8)
    brightness = images.mean(axis=(1, 2, 3), dtype=np.float32)
    batch = {"logits": logits, "label": labels, "mask": np.ones(count, np.float32), "brightness": brightness}
    val, other = (predictions.Collector(examples=count) for _ in range(2))
    val.add(batch)
    other.add(batch)
    report.keep(
        workdir,
        val=val,
        test=other if test else None,
        split=report.Split(images, labels),
        class_names=names or [f"class {i}" for i in range(classes)],
        saliency=lambda images, answers: images[..., 0].astype(np.float32),
    )
    return written(workdir)


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
    page = written(tmp_path)
    assert "<svg" in page and ("metrics.jsonl is damaged" in page) == (change[0] in (b"{", b"epoch"))


def test_lost_records_are_said_on_the_page(tmp_path):
    finished(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    assert "metrics.jsonl is damaged: the curves lack some records" in written(tmp_path)


def test_page_holds_the_result_and_the_curves_and_nothing_from_elsewhere(tmp_path):
    page = write(tmp_path, RESULT)
    assert "is damaged" not in page
    for text in ("25.00 %", "50.00 %", "<svg", "horizon reached", "&lt;cpu&gt;", "&lt;b&gt;net on npz"):
        assert text in page
    assert "kept no predictions of single images" in page and "<img" not in page


def test_the_majority_class_and_the_balanced_accuracy_stand_beside_the_accuracy(tmp_path):
    whole = {**RESULT, "monitor": "balanced_accuracy"}
    whole |= {split: {**RESULT[split], **SCORES} for split in ("val", "test")}
    page = write(tmp_path, whole)
    for text in ("62.50 %", "43.75 %", "25.00 to 75.00 %", "12.50 to 87.50 %", "by val balanced accuracy"):
        assert text in page
    assert "–" not in page and write(tmp_path, RESULT).count("–") == 8  # of an earlier version


def test_a_page_of_predictions_has_all_its_parts(tmp_path):
    page = with_predictions(tmp_path, classes=4, count=80)
    for heading in (
        "Classes",
        "Confusion",
        "The worst mistakes",
        "The least certain",
        "Calibration",
        "Kinds of images",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("data:image/png;base64,") == 3 * examples.MOST and "SmoothGrad" in page
    assert "Test, by class" in page and "test: accuracy by confidence" in page
    assert page.index("validation: accuracy by confidence") < page.index("test: accuracy by confidence")
    sealed = with_predictions(tmp_path, classes=4, count=80, test=False)
    assert "Test, by class" not in sealed and "test: accuracy by confidence" not in sealed


def test_a_class_that_is_never_answered_has_no_precision_and_stands_first(tmp_path):
    page = with_predictions(tmp_path, classes=3, count=30)
    first = page[page.index("<tbody>") :].split("</tr>")[0]
    assert "class 1" in first and "–" in first and "0.0 %" in first


def test_of_1000_classes_the_most_confused_are_shown(tmp_path):
    page = with_predictions(tmp_path, classes=1000, count=2000)
    assert "The 20 classes of the pairs confused most, out of 1,000" in page and "500 better ones" in page
    assert page.count('scope="row"') == 2 * 20 and len(page) < 2_000_000


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_channels_are_drawn(tmp_path, channels):
    assert "<img" in with_predictions(tmp_path, classes=3, count=12, channels=channels)


def test_one_example_and_no_mistake_give_a_page(tmp_path):
    page = with_predictions(tmp_path, classes=2, count=1, wrong=0.0)
    assert "No image is answered wrongly" in page and "The worst mistakes" not in page


def test_names_from_elsewhere_are_escaped(tmp_path):
    names = ["<b>cat", '"dog"', "a & <script>x</script>", "\udce9t\u00e9"]
    page = with_predictions(tmp_path, classes=4, count=40, names=names)
    assert "&lt;b&gt;cat" in page and "&#34;dog&#34;" in page and "&lt;script&gt;" in page and "<b>cat" not in page


def test_damaged_predictions_cost_their_part_of_the_page(tmp_path, caplog):
    with_predictions(tmp_path, classes=3, count=12)
    (tmp_path / "predictions.safetensors").write_bytes(b"x" * 40)
    (tmp_path / "examples.json").write_text("[")
    page = written(tmp_path)
    assert "kept no predictions" in page and "<svg" in page
    assert "predictions.safetensors could not be made" in caplog.text


def test_a_run_that_goes_on_has_its_curves_and_its_last_validation(tmp_path):
    finished(tmp_path)
    (tmp_path / "result.json").unlink()
    lines = [{**record(step), "val_examples": 10} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = written(tmp_path)
    assert "under way: step 2" in page and "50.0 %" in page and "<svg" in page and 'http-equiv="refresh"' in page
    assert 'http-equiv="refresh"' not in write(tmp_path, RESULT)


def test_the_card_of_the_weights_is_shown(tmp_path):
    finished(tmp_path)
    card = {"name": "timm/x", "licence": "mit", "architecture": "resnet10t", "input": {"size": [3, 4]}}
    (tmp_path / "pretrained.json").write_text(json.dumps(checksum.seal(card)))
    page = written(tmp_path)
    assert "pre-trained weights" in page and "resnet10t" in page and "mit" in page


def test_an_error_is_a_line_of_warning_and_ends_nothing(tmp_path, caplog, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a\nb")

    finished(tmp_path)
    monkeypatch.setattr(report.content, "content", fail)
    with caplog.at_level(logging.WARNING):
        report.write(tmp_path)
    (line,) = caplog.messages
    assert "report.html could not be made" in line and "ZeroDivisionError: a b" in line


def test_the_page_of_a_run_that_goes_on_is_written_for_a_small_part_of_the_time(tmp_path, monkeypatch):
    clock, pages = [0.0], []

    def write(workdir):
        pages.append(clock[0])
        clock[0] += 1.0

    monkeypatch.setattr(report, "write", write)
    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])
    live = report.Live(tmp_path)
    for now in (0.0, 10.0, 50.0, 51.0, 60.0, 102.5):
        clock[0] = now
        live()
    assert pages == [0.0, 51.0, 102.5]
