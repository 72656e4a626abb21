"""Many files into a table: each path one line, whatever was killed, cut or asked for again."""

import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from support import forked
from support.runs import run, tiny

from linseed.trainer import files
from linseed.trainer.errors import DataError
from linseed.trainer.portable import images, predict, table
from linseed.trainer.portable.classifier import Part, Predictions

NAMES = ("cat", 'dog, "big"', "\x1b[31mred")
ODD = ("a,b.png", 'c"d".png', 'e"f.png', "e\nf.png", "g\rh.png", "i\udcff.png", "\x1b[2Jj.png", "plain.png")


class Stub:
    """Predicts by the length of a name; a name with "bad" in it cannot be read. It dies at the image `dies`."""

    class_names = NAMES

    def __init__(self, *, model="0123456789abcdef", dies=None):
        self.card, self.dies, self.asked = {"sha256": model}, dies, []

    def stream(self, images, *, batch_size):
        waiting = []
        for name, _ in images:
            if name == self.dies:
                raise KeyboardInterrupt
            self.asked.append(name)
            waiting.append(name)
            if len(waiting) == (batch_size or 4):
                yield self._part(waiting)
                waiting = []
        if waiting:
            yield self._part(waiting)

    def _part(self, names):
        good = tuple(name for name in names if "bad" not in name)
        logits = np.array([[0, 1 + len(name) % 3, 0.5] for name in good], np.float32).reshape(-1, 3)
        bad = {name: "no image" for name in names if "bad" in name}
        return Part(Predictions(good, NAMES, logits, 1.0), bad)


def into(out, paths, *, classifier=None, top=1, part=(1, 1), batch_size=4):
    said = []
    done = predict.into_table(
        classifier or Stub(),
        iter(paths),
        out,
        top=top,
        part=part,
        batch_size=batch_size,
        say=said.append,
        show=lambda done: None,
    )
    return done, said


@pytest.fixture(params=[".csv", ".jsonl"])
def out(request, tmp_path):
    return tmp_path / f"out{request.param}"


def rows(out):
    """The lines of a file, by the standard readers."""
    text = out.read_bytes().decode(errors="surrogateescape")
    if out.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return [json.loads(line) for line in text.splitlines()]


def test_each_path_has_one_line_whatever_is_in_its_name(out):
    done, said = into(out, (*ODD, "bad.png", *ODD), top=2)
    assert (done.predicted, done.bad, done.there) == (len(ODD), 1, 0)
    assert [row["path"] for row in rows(out)] == list(ODD)
    assert said == ["left out, cannot be read: bad.png (no image)"]
    first = rows(out)[0]
    names = [first["label"], first["label_2"]] if out.suffix == ".csv" else [name for name, _ in first["top"]]
    assert first["label"] == NAMES[1] and names == [NAMES[1], NAMES[2]]
    assert 0 < float(first["probability"]) < 1 and first["model"] == "0123456789ab"


def test_many_unreadable_files_are_counted_and_a_few_named(out):
    done, said = into(out, [f"bad{number}" for number in range(100)])
    assert (done.predicted, done.bad, len(said)) == (0, 100, 5)


def test_a_run_that_was_killed_anywhere_goes_on_to_the_same_lines(out, tmp_path):
    into(out, ODD)
    whole, expected = out.read_bytes(), rows(out)
    for size in range(0, len(whole), 3):
        out.write_bytes(whole[:size])
        done, _ = into(out, ODD)
        assert rows(out) == expected and done.predicted + done.there == len(ODD), size


def test_an_interrupted_run_keeps_its_batches_and_asks_for_the_others_alone(out):
    paths = [f"{number:03}.png" for number in range(30)]
    with pytest.raises(KeyboardInterrupt):
        into(out, paths, classifier=Stub(dies="017.png"))
    assert len(rows(out)) == 16
    again = Stub()
    done, said = into(out, paths, classifier=again)
    assert again.asked == paths[16:] and (done.there, done.predicted) == (16, 14)
    assert [row["path"] for row in rows(out)] == paths and "holds 16 predictions" in said[0]
    assert into(out, paths)[0].predicted == 0 and len(rows(out)) == 30


def test_the_parts_of_several_machines_are_all_of_it_once(out):
    paths, found = [f"{number}.png" for number in range(200)], []
    for index in (1, 2, 3):
        mine = out.with_name(f"{index}{out.suffix}")
        into(mine, paths, part=(index, 3))
        found.append([row["path"] for row in rows(mine)])
    assert sorted(sum(found, [])) == sorted(paths) and min(map(len, found)) > 40


def test_lines_that_are_not_of_this_command_are_refused_and_stay(out):
    into(out, ODD)
    before = out.read_bytes()
    for options, says in (
        ({"classifier": Stub(model="fedcba9876543210")}, r"of another model \(0123456789ab\)"),
        ({"top": 2}, "other columns" if out.suffix == ".csv" else "has 1 classes"),
    ):
        with pytest.raises(DataError, match=f"{says}; choose another --out"):
            into(out, ODD, **options)
    out.write_bytes(b"my,own\n1,2\n")
    with pytest.raises(DataError, match="line 1 of .* choose another --out"):
        into(out, ODD)
    assert out.read_bytes() == b"my,own\n1,2\n"
    damaged = before.replace(b"plain", b"\n\nplain")
    out.write_bytes(damaged)
    with pytest.raises(DataError, match="is no line of predictions"):
        into(out, ODD)
    assert out.read_bytes() == damaged


def test_two_commands_do_not_write_one_file(out):
    with files.appending(out, keep=lambda file: 0), pytest.raises(DataError, match="another command is writing"):
        into(out, ODD)


def test_paths_that_were_seen_stay_seen_however_many(monkeypatch):
    monkeypatch.setattr(table, "_UNSORTED", 10)
    seen, paths = table.Paths(), [f"{number}.png" for number in range(1000)]
    assert all(map(seen.add, paths)) and not any(map(seen.add, paths))


def listed(*arguments, column="path", stdin=""):
    return list(images.paths([str(each) for each in arguments], column=column, stdin=io.StringIO(stdin)))


def test_folders_patterns_lists_and_stdin_name_files(tmp_path):
    for name in (
        "b/2.png",
        "b/1.JPG",
        "b/c/3.webp",
        "a.png",
        ".hidden.png",
        "b/notes.txt",
        "b/.DS_Store",
        "__MACOSX/x.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    names = ["a.png", "b/1.JPG", "b/2.png", "b/c/3.webp"]
    assert listed(tmp_path) == [str(tmp_path / name) for name in names]
    assert sorted(listed(tmp_path / "b" / "*.png")) == [str(tmp_path / "b" / "2.png")]
    assert str(tmp_path / "b/c/3.webp") in listed(tmp_path / "**" / "*.webp")
    (tmp_path / "list.csv").write_text('\ufeffid,photo\n1,x.png\n2,"y,z.png"\n3,\n', encoding="utf-8")
    assert listed(tmp_path / "list.csv", column="photo") == ["x.png", "y,z.png"]
    assert listed("-", stdin="p.png\n\nq r.png\r\n") == ["p.png", "q r.png"]
    with pytest.raises(DataError, match="no column 'path' but id, photo; name it by --column"):
        listed(tmp_path / "list.csv")
    with pytest.raises(DataError, match="no file or folder at absent; check the path"):
        images.check(["-", str(tmp_path), "*.png", "absent"])


def test_a_folder_is_sorted_in_parts_and_not_listed_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_SORTED", 3)
    for number in range(10):
        (tmp_path / f"{number}.png").touch()
    found = [path.rpartition("/")[2] for path in images.below(str(tmp_path))]
    assert sorted(found) == [f"{number}.png" for number in range(10)] and found[:3] == sorted(found[:3])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model file, photos, and folders to go wrong with."""
    place = tmp_path_factory.mktemp("predict")
    run(tiny(**{"horizon.epochs": 1.0, "schedule.warmup_epochs": 0.0}), place / "run", judge=("val",))
    (place / "photos").mkdir()
    (place / "empty").mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(place / "photos" / f"{number}.png")
    (place / "photos" / "bad\x1b[31m.png").write_bytes(b"no image")
    return place


def linseed(place, *arguments):
    return forked.run(["-m", "linseed", "predict", *arguments], cwd=place)


def test_the_command_predicts_and_goes_on(place):
    flags = ["--model=run/model.linseed", "--out=out.csv", "--top=2"]
    done = linseed(place, "photos/0.png", *flags)
    assert done.returncode == 0 and "1 predicted; " in done.stdout, done.stderr
    done = linseed(place, *flags, "photos")
    assert done.returncode == 0 and "4 predicted, 1 were there, 1 cannot be read; " in done.stdout, done.stderr
    assert "photos/bad?[31m.png (not a whole image" in done.stdout and "\x1b" not in done.stdout + done.stderr
    found = rows(place / "out.csv")
    assert [row["path"] for row in found] == [f"photos/{number}.png" for number in range(5)]
    assert all(1 >= float(row["probability"]) >= float(row["probability_2"]) for row in found)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model=run/model.linseed", "--out=o.csv"], "PATHS is missing; the command is"),
        (["--model=run/model.linseed", "--out=o.txt", "photos"], "should end in .csv or .jsonl"),
        (["--model=run/model.linseed", "--out=gone/o.csv", "photos"], "there is no folder .*gone; make it, or choose"),
        (["--model=run/model.linseed", "--out=o.csv", "--part=5/4", "photos"], "--part=5/4 should be I/N"),
        (["--model=run/model.linseed", "--out=o.csv", "absent"], "no file or folder at absent"),
        (["--model=run/config.json", "--out=o.csv", "photos"], "no whole file of safetensors"),
        (["--model=run", "--out=o.csv", "photos"], "run cannot be read"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_no_file(place, arguments, says):
    done = linseed(place, *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert not list(place.glob("o.*"))


@pytest.mark.parametrize(
    ("paths", "says"), [("empty", "no images there"), ("photos/bad*", "none of the 1 files can be")]
)
def test_where_nothing_can_be_predicted_the_status_is_2(place, paths, says):
    done = linseed(place, "--model=run/model.linseed", "--out=nothing.csv", paths)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (place / "nothing.csv").exists()
