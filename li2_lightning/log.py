"""Messages to the user that are no errors.

They go to the logger ``li2_lightning`` of Python's ``logging``, so a program can silence or redirect them:
``logging.getLogger("li2_lightning").setLevel(logging.ERROR)``.
"""

from __future__ import annotations

import logging
import sys

from lightning.pytorch.utilities import rank_zero_only


class _Terminal(logging.Handler):
    """Prints what a run does on stdout, and what deserves attention on stderr, which may change at any time.

    An error of the stream, such as a closed pipe, is raised as by `print`.
    """

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stdout if record.levelno < logging.WARNING else sys.stderr, flush=True)


_logger = logging.getLogger("li2_lightning")
if not _logger.handlers:
    _logger.addHandler(_Terminal())
    _logger.setLevel(logging.INFO)
    _logger.propagate = False


@rank_zero_only
def tell(line: str) -> None:
    """Report the course of a run, on the first rank alone."""
    _logger.info("%s", line)


@rank_zero_only
def say(line: str) -> None:
    """Report what deserves attention, on the first rank alone; stdout is for results."""
    _logger.warning("%s", line)
