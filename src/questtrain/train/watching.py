"""The watch of this process over the other ranks: begun when they have met, asked when a collective
fails. A process is a rank of one run at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from questtrain.errors import ErrorOnAnotherRank, TrainingStopped, UserError
from questtrain.process.ranks import HAS_PARENT, PEER_LOST
from questtrain.process.watch import Watch
from questtrain.process.watch_hub import Hub
from questtrain.process.watch_member import Spoke, connect
from questtrain.train.meeting import Meeting

log = logging.getLogger(__name__)

SECONDS_TO_FIND = 15.0
"""How long after a failed collective the watch may need to find who is to blame."""


class RankEndsAlone(TrainingStopped):
    """This rank ends without the others' consent: it is out of memory, or one of them is gone. A
    collective may be under way."""


class PeerLost(RankEndsAlone, ErrorOnAnotherRank):
    """This rank ends because another one is gone: which, has been said by this rank's watch or by
    another's, or will be by their parent."""


@dataclass
class _Current:
    watch: Watch | None = None


_current = _Current()


@contextmanager
def watching(meeting: Meeting, rank: int, patience: float) -> Iterator[None]:
    """Watch the other ranks inside the block, and be watched by them."""
    watch: Watch | None = None
    if meeting.listener is not None:
        watch = Hub(meeting.roster, patience, meeting.listener, meeting.word)
    elif (connection := connect(meeting.addresses, meeting.port)) is not None:
        watch = Spoke(rank, meeting.roster, patience, connection, meeting.word)
    else:
        log.error(
            "rank %d cannot reach rank 0's port %d at %s: whether this rank dies or hangs, the"
            " others learn only when a collective fails",
            rank,
            meeting.port,
            " or ".join(meeting.addresses),
        )
    _current.watch = watch
    if watch is None:
        yield
        return
    watch.start()
    alone = True
    try:
        yield
        alone = False
    except BaseException as error:
        agreed = isinstance(error, (UserError, TrainingStopped))
        alone = isinstance(error, RankEndsAlone) or not agreed
        raise
    finally:
        _current.watch = None
        watch.close(alone)


@contextmanager
def noticing_lost_peers() -> Iterator[None]:
    """A collective inside the block fails when a rank is gone: this one then ends, and who is to
    blame is said once."""
    watch = _current.watch
    waiting: AbstractContextManager[None] = watch.progress.collective() if watch else nullcontext()
    try:
        with waiting:
            yield
    except RuntimeError as error:
        verdict = watch.verdict(SECONDS_TO_FIND) if watch else None
        if verdict is not None:
            raise PeerLost(verdict.exit_code) from error
        if HAS_PARENT in os.environ:
            raise PeerLost(PEER_LOST) from error
        raise RankEndsAlone(
            "another process of this run has ended without a word to this one. The same command"
            " continues from the last checkpoint."
        ) from error


def in_a_step() -> AbstractContextManager[None]:
    """Inside the block this rank reads a batch or computes a step: long silence means that it
    hangs. Elsewhere (data are prepared, a model is compiled, evaluated, saved) it may mean work."""
    watch = _current.watch
    return watch.progress.step() if watch else nullcontext()
