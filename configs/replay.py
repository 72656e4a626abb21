"""Any earlier run again, from the `config.json` in its workdir.

python -m scripts.train --config=configs/replay.py:runs/digits/config.json --workdir=runs/again
"""

import json

import ml_collections


def get_config(path=""):
    if not path:
        raise ValueError("replay needs the config to run: --config=configs/replay.py:WORKDIR/config.json")
    with open(path, encoding="utf-8") as file:
        try:
            values = json.load(file)
            values.pop("crc32", None)  # the run's own checksum of its file
            return ml_collections.ConfigDict(values)
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{path} is not the config.json of a run; check the path after the colon") from None
