"""Damaged files of a run: the newest sound checkpoint is used, the damage is named, nothing sound is deleted."""

import pytest

from linseed.scripts.bench.cases import tiny
from linseed.scripts.faults import damage, folders

FINISHED = ("flip largest", "empty folder .")  # the others are restored from and not trained on


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return damage.Bench(tiny(), tmp_path_factory.mktemp("damage"))


def test_the_best_checkpoint_is_an_early_one(bench):
    assert bench.result["best_step"] < min(step for step in bench.steps if step != bench.result["best_step"])
    assert sorted(bench.steps)[-2:] == [16, damage.LATEST]


@pytest.mark.parametrize("of", ["latest", "best"])
@pytest.mark.parametrize("name", damage.CHECKPOINT)
def test_a_damaged_checkpoint_is_set_aside_and_the_newest_sound_one_is_used(bench, name, of):
    assert bench.checkpoint(name, of=of, finish=name in FINISHED) == ""


@pytest.mark.parametrize("name", damage.FINISHED)
def test_a_finished_run_whose_log_is_damaged_gets_its_page(bench, name):
    assert bench.finished(name) == ""


@pytest.mark.parametrize("name", folders.CASES)
def test_a_folder_with_links_or_taken_away_ends_the_run_and_nothing_else_is_touched(bench, name):
    assert folders.CASES[name](bench) == ""


@pytest.mark.parametrize("name", damage.FILES)
def test_other_damaged_files_are_named_or_made_good(bench, name):
    assert bench.file(name) == ""
