"""What was sealed is read back as it was, and any change of it is noticed."""

import json

import numpy as np
import pytest

from linseed.trainer.checksum import checksums, loads, seal, shapes, unseal

RECORD = {"step": 3, "loss": 0.125, "path": ["a", {"b": None}], "worst": float("-inf")}


def test_what_was_sealed_comes_back_also_through_json():
    assert unseal(seal(RECORD)) == RECORD
    assert loads(json.dumps(seal(RECORD))) == RECORD


def test_any_other_digit_is_noticed():
    text = json.dumps(seal(RECORD))
    for place, letter in enumerate(text):
        if letter.isdigit():
            assert loads(text[:place] + str((int(letter) + 1) % 10) + text[place + 1 :]) is None, place


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '{"step": 3}', "[" * 100_000])
def test_what_was_never_sealed_is_none(text):
    assert loads(text) is None


def test_one_bit_of_an_array_is_another_checksum_of_the_same_shape():
    tree = {"a": {"kernel": np.zeros((2, 3), np.float32)}, "b": np.int32(4)}
    other = {**tree, "a": {"kernel": tree["a"]["kernel"].copy()}}
    other["a"]["kernel"].view(np.uint8)[0, 0] ^= 1
    assert checksums(tree) == checksums(tree)
    assert [path for path in checksums(tree) if checksums(tree)[path] != checksums(other)[path]] == ["['a']['kernel']"]
    assert shapes(tree) == shapes(other)
    assert shapes(tree) != shapes({**tree, "b": np.int64(4)})
