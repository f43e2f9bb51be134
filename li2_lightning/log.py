"""Messages to the user that are no errors."""

from __future__ import annotations

import sys

from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def say(line: str) -> None:
    """Print ``line`` on stderr, on the first rank alone; stdout is for results."""
    print(line, file=sys.stderr, flush=True)
