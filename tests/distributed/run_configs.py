"""What each rank of a test runs: every config of a JSON list, one after the other, in one process group.

    torchrun --nproc-per-node 2 run_configs.py configs.json

Starting Python and torch costs seconds a rank, so a group of processes serves many runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train

if __name__ == "__main__":
    for config in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        train.run(config)
