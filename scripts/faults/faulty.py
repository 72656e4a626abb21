"""`scripts.train` with a fault when it reads one step's batch: FAULT STEP, then the flags of scripts.train.

python -m scripts.faults.faulty hung 12 --config=configs/digits.py --workdir=runs/digits
"""

import os
import runpy
import signal
import sys
import time

from linseed.trainer.data import batching

SAID = "faulty: "  # prefix of the line that announces the fault


def _raise():
    raise RuntimeError("raised on purpose")


FAULTS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raising": _raise,
    "frozen": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hung": lambda: time.sleep(3600),
}


def main():
    """Takes its own two arguments and passes on the rest."""
    fault, step = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    places = batching.places

    def faulty(at, **draw):
        if at == step:
            print(f"{SAID}{fault} at step {step}", flush=True)
            FAULTS[fault]()
        return places(at, **draw)

    batching.places = faulty
    runpy.run_module("scripts.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
