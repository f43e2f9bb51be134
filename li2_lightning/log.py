"""One line to the person who runs it: a fact worth knowing that is no error."""

from __future__ import annotations

import sys

from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def say(line: str) -> None:
    """Print ``line`` on stderr, once and not once a rank; stdout stays for results."""
    print(line, file=sys.stderr, flush=True)
