"""One round of FATE on the tiny case: a small model learns from its own failures. Takes minutes on two cores.

Needs `pip install 'fate-gym[train]'`. The same call goes on with a training that was interrupted; `fate-tiny` in place
of `fate-tiny-ci` is the larger case.
"""

import sys
from pathlib import Path

from fate_gym.trainers.config import read_config
from fate_gym.trainers.fate import train

if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/fate-round")
    config = read_config("fate-tiny-ci", ["rounds=1", *sys.argv[2:]])
    summary = train(config, out)
    for when in ("before", "after"):
        row = summary[when]
        print(when, {name: round(row[name]["value"], 3) for name in ("ASR", "TSR", "BRR")}, "n =", row["n"])
    print("policy:", summary["best"]["policy"])
