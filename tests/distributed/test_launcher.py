"""The processes of the other ranks: the first to fail is named, all end together, and this process stays as it was."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from li2_lightning.distributed.launcher import FOLLOWER, LOST_CONNECTION, READY, Followers
from li2_lightning.errors import OtherRankError

SAYS_READY = f"print({READY!r}, flush=True); "
WAITS = "import time; time.sleep(600)"
LOSES_CONNECTION = f"import os; os._exit({LOST_CONNECTION})"

Start = Callable[..., Followers]


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(program, …)``: a process of Python for each program, ranks 1, 2, …; they are gone after the test."""
    started: list[Followers] = []

    def call(*programs: str) -> Followers:
        environments = [{"PROGRAM": program} for program in programs]
        command = [sys.executable, "-S", "-c", "import os; exec(os.environ['PROGRAM'])"]
        started.append(Followers(command, {"seed": 3}, environments, first_rank=1))
        return started[-1]

    yield call
    for followers in started:
        followers.end(success=False)


def first_failure(followers: Followers) -> str:
    failure = followers.failure(seconds=60)
    assert failure is not None
    assert failure.exit_code == 1
    return str(failure)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("import sys; sys.exit('no room left')", "Rank 2 ended with code 1: no room left"),
        ("import os; os._exit(7)", "Rank 2 ended with code 7."),
        ("import os; os.kill(os.getpid(), 9)", "Rank 2 was ended by SIGKILL."),
    ],
)
def test_a_rank_that_fails_before_it_joins_is_not_waited_for(program: str, sentence: str, start: Start) -> None:
    with pytest.raises(OtherRankError, match=sentence):
        start(SAYS_READY + WAITS, program).wait_until_ready()


@pytest.mark.parametrize("code", [0, 130])
def test_nor_is_one_that_ends_for_no_reason(code: int, start: Start) -> None:
    with pytest.raises(OtherRankError, match="before they joined"):
        start(f"import os; os._exit({code})").wait_until_ready()


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_of_several_ranks_the_one_that_was_killed_is_named(killed: int, start: Start) -> None:
    """The other ranks end, too, since they have lost the connection to it."""
    programs = [SAYS_READY + LOSES_CONNECTION] * 3
    programs[killed - 1] = SAYS_READY + "os = __import__('os'); os.kill(os.getpid(), 9)"
    followers = start(*programs)
    wait_until_ended(followers)
    assert first_failure(followers) == f"Rank {killed} was ended by SIGKILL."


def test_nobody_is_named_while_all_run(start: Start) -> None:
    followers = start(SAYS_READY + WAITS, SAYS_READY + WAITS)
    followers.wait_until_ready()
    assert followers.failure() is None


@pytest.mark.parametrize("code", [0, 3, 130, 143])
def test_an_end_that_all_ranks_come_to_alike_is_no_failure(code: int, start: Start) -> None:
    """The first rank may still be saving: it is not ended from outside, however long that takes."""
    followers = start(f"import sys; sys.exit({code})")
    wait_until_ended(followers)
    assert followers.failure() is None


def test_one_that_fails_ends_the_others(start: Start) -> None:
    followers = start(SAYS_READY + WAITS, SAYS_READY + "raise ValueError('the cat')")
    pids = process_ids(followers)
    assert first_failure(followers) == "Rank 2 ended with code 1: ValueError: the cat"
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_this_process_stays_as_it_was(start: Start) -> None:
    """The launcher has signal handlers of its own, which would take the place of those that save a checkpoint."""
    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = dict(os.environ), [signal.getsignal(signum) for signum in caught]
    followers = start(SAYS_READY + WAITS)
    followers.wait_until_ready()
    assert (dict(os.environ), [signal.getsignal(signum) for signum in caught]) == before


def test_a_follower_gets_its_order_and_says_nothing_here(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    order = f"import os, sys; print(open(os.environ[{FOLLOWER!r}]).read(), file=sys.stderr); sys.exit(1)"
    assert '{"config": {"seed": 3}' in first_failure(start(order))
    assert capfd.readouterr() == ("", "")


def process_ids(followers: Followers) -> list[int]:
    return list(followers._processes.pids().values())


def wait_until_ended(followers: Followers) -> None:
    """Before anybody looks, so that all ends are found at once."""
    deadline = time.monotonic() + 60
    for pid in process_ids(followers):
        while (state := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "Z":
            assert time.monotonic() < deadline, state
