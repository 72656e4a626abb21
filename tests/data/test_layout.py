"""Which folders are splits and classes, what is passed over, and what is refused. Listing reads no image."""

import os

import pytest

from linseed.trainer.data.layout import meant_split
from linseed.trainer.data.listing import list_folder
from linseed.trainer.errors import DataError
from linseed.trainer.run import workdir as workdir_lib


def write(root, *folders, images=3):
    """Empty files in the place of images."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(images):
            (root / folder / f"{i}.jpg").touch()


def listed(root):
    return list_folder(str(root), test_fraction=0.3, split_seed=0)


def refusal(root):
    with pytest.raises(DataError) as caught:
        listed(root)
    message = str(caught.value).replace(str(root), "DIR")
    assert message.isprintable() and len(message) < 500
    return message


@pytest.mark.parametrize("name", ["Test", "TEST", "test"])
def test_a_split_is_used_by_its_name_in_any_case(tmp_path, name):
    write(tmp_path, "Train/cat", "Train/dog", f"{name}/cat", f"{name}/dog", "VAL/cat")
    files = listed(tmp_path).files
    assert files["test"].paths == [f"{name}/{kind}/{i}.jpg" for kind in ("cat", "dog") for i in range(3)]
    assert len(files["train"].paths) == 6 and files["val"].labels.tolist() == [0, 0, 0]


MEANT = {
    "train": ["training", "train_set", "TrainingData", "seg_train", "train2017", "images-train", "Train Images"],
    "val": ["valid", "Validation", "dev", "val_images", "validation-set", "dataset_val"],
    "test": ["testing", "test_set", "Testset", "seg_test", "holdout", "test.data", "test1"],
    "": [
        "trains",
        "train_station",
        "invalid",
        "validated",
        "latest",
        "contest",
        "test_tube",
        "cat",
        "interval",
        "data",
    ],
}


@pytest.mark.parametrize("split", MEANT)
def test_a_name_means_a_split_if_it_says_nothing_else(split):
    assert {name: meant_split(name) for name in MEANT[split]} == dict.fromkeys(MEANT[split], split)


@pytest.mark.parametrize("split, name", [("val", "validation"), ("test", "test_set"), ("test", "Testing")])
def test_a_split_by_another_name_is_named_with_its_cure_and_the_cure_works(tmp_path, split, name):
    write(tmp_path, "train/cat", "train/dog", f"{name}/cat", f"{name}/dog")
    assert f"DIR holds '{name}'; rename '{name}' to '{split}'" in refusal(tmp_path)
    (tmp_path / name).rename(tmp_path / split)
    assert len(listed(tmp_path).files[split].paths) == 6


def test_no_train_but_other_names_of_splits_are_named_together(tmp_path):
    write(tmp_path, "training_set/cat", "training_set/dog", "test_set/cat", "test_set/dog")
    assert "rename 'training_set' to 'train', 'test_set' to 'test'" in refusal(tmp_path)


@pytest.mark.parametrize("names", [("test", "Test"), ("test", "test_set")])
def test_two_folders_of_one_split_are_refused(tmp_path, names):
    write(tmp_path, "train/cat", "train/dog", *(f"{name}/{kind}" for name in names for kind in ("cat", "dog")))
    assert "mean the same split" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["cat", "Cat"])
def test_a_folder_beside_train_that_holds_its_classes_is_refused(tmp_path, kind):
    write(tmp_path, "train/cat", "train/dog", f"spring 2019/{kind}")
    assert f"DIR holds 'spring 2019', with the classes '{kind}' of train/" in refusal(tmp_path)


def test_another_folder_beside_train_is_named(tmp_path):
    write(tmp_path, "train/cat", "train/dog", "test/cat", "unlabelled", "papers/figures")
    assert listed(tmp_path).notes == (f"not used, no splits: 2 folders of {tmp_path} ('papers', 'unlabelled')",)


@pytest.mark.parametrize("names", [("train", "car", "plane"), ("valid", "invalid"), ("train_images", "test_images")])
def test_a_class_with_the_name_of_a_split_is_refused_and_the_cure_works(tmp_path, names):
    write(tmp_path, *names)
    message = refusal(tmp_path)
    assert f"DIR/{min(set(names) & {'train', 'valid', 'test_images'})} has the name of a split" in message
    assert message.endswith("move all class folders into a new folder, and name that 'train'")
    (tmp_path / "new").mkdir()
    for name in names:
        (tmp_path / name).rename(tmp_path / "new" / name)
    (tmp_path / "new").rename(tmp_path / "train")
    assert set(listed(tmp_path).class_names) == set(names)


LITTER = ["cat/Thumbs.db", "cat/.DS_Store", "cat/._0.jpg", "dog/notes.txt", "dog/Desktop.ini", "dog/0.XMP"]
LITTER += ["cat/Icon\r", "cat/labels.csv", "cat/clip.MOV", "__MACOSX/cat/._0.jpg", "cat/@eaDir/0.jpg", ".git/0.jpg"]


@pytest.mark.parametrize("below", ["", "train"])
def test_litter_is_passed_over_with_a_count(tmp_path, below):
    root = tmp_path / below
    write(root, "cat", "dog")
    for path in LITTER:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    found = listed(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert sum(len(files.paths) for files in found.files.values()) == 6
    (note,) = found.notes
    assert note.startswith(f"not used, no images: {len(LITTER)} entries of {tmp_path} (") and note.isprintable()


def test_images_in_no_class_folder_are_counted(tmp_path):
    write(tmp_path, "", "cat", "dog")
    assert listed(tmp_path).notes == (
        f"not used, in no class folder: 3 files of {tmp_path}{os.sep} ('0.jpg', '1.jpg', '2.jpg')",
    )


@pytest.mark.parametrize("run", ["run", "runs/first", "cat/run"])
def test_the_folder_of_a_run_is_passed_over(tmp_path, run):
    write(tmp_path, "cat", "dog")
    with workdir_lib.lock(tmp_path / run):
        (tmp_path / run / "checkpoints").mkdir()
        found = listed(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert "no images: 1 entry of" in found.notes[0]


def test_a_class_of_locks_is_no_run(tmp_path):
    write(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "lock").touch()
    assert "cat" in listed(tmp_path).class_names


def test_folders_one_level_too_deep_are_refused_and_the_cure_works(tmp_path):
    write(tmp_path, "photos/cat", "photos/dog")
    assert "DIR/photos holds folders ('cat', 'dog') and no images" in refusal(tmp_path)
    assert "set config.data.source.root=DIR/photos" in refusal(tmp_path)
    assert listed(tmp_path / "photos").class_names == ("cat", "dog")


def test_a_split_in_a_folder_of_its_own_name_is_moved_up_and_no_other_root_is_offered(tmp_path):
    write(tmp_path, "train/train/cat", "train/train/dog", "test/test/cat")
    message = refusal(tmp_path)
    assert "move them up into DIR/train" in message and "root=" not in message


def test_a_folder_in_a_class_folder_is_refused_with_the_cure(tmp_path):
    write(tmp_path, "cat", "cat/2019", "dog")
    with pytest.raises(DataError, match="cat/2019 .a folder; move its images up into the class folder"):
        listed(tmp_path).check_refused()


@pytest.mark.parametrize("given", [(), ("test",), ("val",), ("val", "test")])
@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_class_too_small_for_the_splits_that_are_carved_is_named(tmp_path, given, images):
    below = "train" if given else ""
    write(tmp_path / below, "cat", "dog", images=4)
    write(tmp_path / below, "bird", images=images)
    for split in given:
        write(tmp_path / split, "cat", "dog", "bird")
    needed = 3 - len(given)
    if images >= needed:
        assert len(listed(tmp_path).class_names) == 3
        return
    message = refusal(tmp_path)
    assert f"class 'bird' has {images} image" in message and f"add images until it has {needed}" in message


def test_names_that_encode_accents_in_two_ways_are_one_class(tmp_path):
    write(tmp_path, "train/caf\u00e9", "train/dog", "test/cafe\u0301", "test/dog")
    files = listed(tmp_path).files["test"]
    assert {path.split("/")[1]: int(label) for path, label in zip(files.paths, files.labels, strict=True)} == {
        "cafe\u0301": 0,
        "dog": 1,
    }
    write(tmp_path, "train/cafe\u0301")
    assert "names that look the same" in refusal(tmp_path)


def test_a_class_that_differs_in_case_is_named_with_its_cure(tmp_path):
    write(tmp_path, "train/Cat", "train/dog", "test/cat")
    assert "test/ holds class 'cat', which train/ does not; rename it to 'Cat'" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a, b", "Ünïcode 猫", "with space", "a=b", "100%", "quo'te"])
def test_odd_names_are_classes_and_files_as_they_are(tmp_path, name):
    write(tmp_path, name, "dog")
    (tmp_path / name / f"{name}.jpg").touch()
    found = listed(tmp_path)
    assert set(found.class_names) == {name, "dog"}
    assert f"{name}/{name}.jpg" in found.files["train"].paths + found.files["test"].paths


def test_a_link_to_itself_is_no_folder(tmp_path):
    write(tmp_path, "cat", "dog")
    (tmp_path / "loop").symlink_to("loop")
    assert "loop" in listed(tmp_path).notes[0]
