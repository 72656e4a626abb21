"""Any earlier run again, from the `config.json` in its workdir.

python -m scripts.train --config=configs/replay.py:runs/digits/config.json --workdir=runs/again
"""

import json

import ml_collections


def get_config(path):
    with open(path) as file:
        return ml_collections.ConfigDict(json.load(file))
