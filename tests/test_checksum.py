"""Checksums inside JSON objects: what is read is what was written, or None."""

import json

import pytest

from linseed.trainer import checksum

RECORD = {"step": 10, "loss": 0.1, "nan": float("nan"), "shape": (2, 3), "counts": {10: 1, 9: 2}, "text": "é"}


def test_what_was_sealed_is_read_as_json_gives_it():
    text = json.dumps(checksum.seal(RECORD))
    for read in (checksum.loads, checksum.loads_or_old):
        assert json.dumps(read(text)) == json.dumps(RECORD)


@pytest.mark.parametrize("place", range(0, 100, 3))
def test_no_other_byte_is_taken_for_what_was_written(place):
    text = bytearray(json.dumps(checksum.seal(RECORD)).encode())
    text[place] ^= 0x01
    try:
        same = json.dumps(json.loads(text)) == json.dumps(checksum.seal(RECORD))
    except ValueError:
        same = False
    assert (checksum.loads(bytes(text)) is not None) == same


def test_an_object_without_a_checksum_is_of_an_earlier_version():
    assert checksum.loads_or_old('{"step": 1}') == {"step": 1}
    assert checksum.loads('{"step": 1}') is None
    for text in ("[1]", "null", "{", "[" * 100_000, b"\xff"):
        assert checksum.loads_or_old(text) is None
