"""The result in words, for every way that validation and test can differ."""

import pytest

from linseed.trainer.report import headline


def score(split, right, examples, **more):
    return headline.read_score(split, {"accuracy": right / examples, "examples": examples, "loss": 1.0, **more})


def test_the_interval_of_a_difference_is_newcombes():
    # Newcombe 1998, table II, method 10: 56/70 against 48/80 is 0.0524 to 0.3339.
    gap, low, high = headline.difference(score("validation", 56, 70), score("test", 48, 80))
    assert (gap, low, high) == (pytest.approx(0.2), pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


@pytest.mark.parametrize(
    ("val", "test", "said"),
    [
        (50, 48, "2.0 points higher than test (95 % interval of the difference: −11.6 to +15.5 points), which chance"),
        (90, 40, "50.0 points higher than test"),
        (40, 90, "the test images are easier"),
        (50, 50, "Validation is as high as test"),
    ],
)
def test_the_gap_is_said_in_words(val, test, said):
    sentences = headline.sentences(score("validation", val, 100), score("test", test, 100), openings=1)
    assert said in " ".join(sentences)


def test_the_majority_the_seal_and_many_openings_are_said():
    val = score("validation", 50, 100, majority_share=0.45)
    assert "not surely better than always answering" in headline.sentences(val, None, openings=0)[0]
    assert "sealed" in headline.sentences(val, None, openings=0)[1]
    test = score("test", 95, 100, majority_share=0.5)
    first, *_, last = headline.sentences(val, test, openings=3)
    assert "45.0 points above" in first and "right for 50.0 %" in first and "3 times" in last
