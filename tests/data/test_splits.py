"""Splits that hold every example once in the right shares, and the seal on test."""

import json

import numpy as np
import pytest

from linseed.trainer.data.dataset import Source
from linseed.trainer.data.splits import SealedTest, Split, carve_validation, left_out, part, stratified_split, take
from linseed.trainer.errors import DataError


def labelled(*counts):
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    labels = np.random.default_rng(0).permutation(labels)
    return Split(np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1), labels)


@pytest.mark.parametrize("counts", [(10, 10), (100, 20, 5), (2, 2, 2)])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_split_holds_every_example_once_in_class_shares(counts, fraction):
    labels = labelled(*counts).labels
    rest, drawn = stratified_split(labels, fraction=fraction, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, drawn])), np.arange(len(labels)))
    for label, count in enumerate(counts):
        wanted = min(max(round(fraction * count), 1), count - 1)
        assert np.sum(labels[drawn] == label) == wanted


def test_split_depends_on_the_seed_alone():
    labels = labelled(50, 50).labels
    a, b, c = (stratified_split(labels, fraction=0.2, seed=seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_a_class_with_one_example_cannot_be_split():
    with pytest.raises(DataError, match="class 1 has 1 example"):
        stratified_split(labelled(5, 1).labels, fraction=0.2, seed=0)


def source_of(train, val=None, open_test=None):
    return Source(train=train, val=val, open_test=open_test, class_names=("a", "b"), skipped=())


def test_validation_is_carved_from_train_and_never_touches_test():
    def forbidden():
        raise AssertionError("test was opened")

    whole = labelled(40, 40)
    train, val = carve_validation(source_of(whole, open_test=forbidden), fraction=0.25, seed=0)
    assert (len(train.labels), len(val.labels)) == (60, 20)
    both = np.concatenate([train.images, val.images]).ravel()
    np.testing.assert_array_equal(np.sort(both), np.sort(whole.images.ravel()))


def test_a_class_too_small_for_validation_is_named_with_its_cure():
    with pytest.raises(DataError, match="class 'b' has 1 image in train, too few to carve validation from; add"):
        carve_validation(source_of(labelled(5, 1)), fraction=0.25, seed=0)


def test_a_source_with_its_own_validation_keeps_it():
    whole, own = labelled(10, 10), labelled(2, 2)
    train, val = carve_validation(source_of(whole, own), fraction=0.25, seed=0)
    assert train is whole and val is own


def test_each_opening_of_test_is_written_down_before_it_is_read(tmp_path):
    record = tmp_path / "openings.jsonl"
    reads = []

    def open_test():
        reads.append(len(record.read_text().splitlines()))
        return take(labelled(3, 3), np.arange(2))

    sealed = SealedTest(open_test, record=record)
    assert sealed.openings == 0 and not record.exists() and not reads
    split = sealed.open(by="train", which="best", step=7)
    sealed.open(by="evaluate", which="latest", step=9)
    assert reads == [1, 2] and len(split.labels) == 2
    assert sealed.openings == SealedTest(open_test, record=record).openings == 2
    entries = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(e["by"], e["which"], e["step"]) for e in entries] == [("train", "best", 7), ("evaluate", "latest", 9)]


def test_an_opening_after_a_torn_line_still_counts(tmp_path):
    record = tmp_path / "openings.jsonl"
    record.write_text('{"time": "20')
    sealed = SealedTest(lambda: None, record=record)
    sealed.open(by="train", which="best", step=1)
    assert sealed.openings == 2
    assert json.loads(record.read_text().splitlines()[-1])["step"] == 1


def test_another_test_split_than_the_run_noted_is_refused(tmp_path):
    record = tmp_path / "openings.jsonl"
    first, other = (SealedTest(lambda: None, record=record, fingerprint=name) for name in ("first", "other"))
    assert first.noted() == ""
    first.open(by="train", which="best", step=1)
    other.open(by="evaluate", which="best", step=1)
    with record.open("a") as file:
        file.write('{"by": "train", "fingerp')
    assert other.noted() == "first"
    first.check_is(other.noted(), cure="")
    with pytest.raises(DataError, match="the test split changed since this run started.*; restore it, or wait"):
        other.check_is(other.noted(), cure=", or wait")
    SealedTest(lambda: None, record=record).check_is("first", cure="")  # of a source that has none


@pytest.mark.parametrize("examples", [3, 10, 70, 129])
def test_a_part_has_the_class_shares_and_lies_within_a_larger_part(examples):
    whole = labelled(80, 40, 10)
    some, more = (part(whole, examples=count, seed=0) for count in (examples, 130))
    assert len(some.labels) == examples
    shares = np.bincount(some.labels, minlength=3) - examples * np.array([80, 40, 10]) / 130
    assert np.abs(shares).max() <= 1.5 and np.bincount(some.labels, minlength=3).min() >= 1
    assert set(some.images.ravel()) <= set(part(whole, examples=examples + 1, seed=0).images.ravel())
    np.testing.assert_array_equal(more.images, whole.images)
    assert (part(whole, examples=60, seed=1).images != part(whole, examples=60, seed=0).images).any()


@pytest.mark.parametrize("examples", [3, 70, 129, 130])
def test_what_a_part_leaves_out_is_the_rest_and_has_the_class_shares(examples):
    whole = labelled(80, 40, 10)
    some, rest = part(whole, examples=examples, seed=0), left_out(whole, examples=examples, seed=0, most=130)
    assert sorted([*some.images.ravel(), *rest.images.ravel()]) == sorted(whole.images.ravel())
    few = left_out(whole, examples=examples, seed=0, most=26)
    assert set(few.images.ravel()) <= set(rest.images.ravel()) and len(few.labels) == min(26, 130 - examples)
    if examples < 100:
        assert np.abs(np.bincount(few.labels, minlength=3) - np.array([16, 8, 2])).max() <= 1.5


def test_a_part_of_nothing_is_all_and_too_small_or_too_large_a_part_is_refused():
    whole = labelled(5, 5)
    assert part(whole, examples=0, seed=0) is whole
    for examples in (1, 11):
        with pytest.raises(DataError, match="0 takes all"):
            part(whole, examples=examples, seed=0)
