"""Data-parallel training: the processes of one run, and what they agree on.

Each rank holds the whole model and takes its contiguous rows of every batch. Its gradient is that
of the sum over its rows, divided by the targets of the whole batch, so that summing over the ranks
gives the gradient of the mean; after that every rank computes the same update. Rank 0 alone writes.

There are two groups. Gradients travel through the first (NCCL between GPUs, gloo between CPUs).
What is agreed (errors, signals, the checkpoint to start from) travels between the hosts' CPUs
through the second, which waits as long as the preparation of data may take, and which fails at once
when a process dies. One process makes neither. Who is gone or hangs, the ranks' watch finds
(`questtrain.train.watching`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from questtrain.config import rows_per_process
from questtrain.errors import ErrorOnAnotherRank, ReadFailed, TrainingStopped, UserError
from questtrain.process.orphans import stop_with_agent
from questtrain.process.signals import StopSignal
from questtrain.train.meeting import Meeting, meet
from questtrain.train.watching import PeerLost, RankEndsAlone, noticing_lost_peers, watching

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, or our own `questtrain.process.ranks`, sets for each process; under srun, see
docs/cluster.md."""

SECONDS_TO_NAME = 60.0
"""How long after a rank's time is over a collective goes on waiting for it: the watch, which knows
who it is, speaks first."""

PREPARATION = timedelta(days=7)
"""How long a rank waits for rank 0 to tokenize a corpus."""

MESSAGE_BYTES = 64 << 20
"""Gradients are summed in flat pieces of about this size: few messages, little extra memory."""


@dataclass(frozen=True)
class World:
    """This process among those of its run; alone, every method is free and changes nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    control: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the run folder and speaks for all."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """This rank's rows of a batch; UserError if they cannot be the same number on all."""
        per_rank = rows_per_process(batch_size, self.size, f"{self.size} processes")
        return slice(self.rank * per_rank, (self.rank + 1) * per_rank)

    @torch.no_grad()
    def all_reduce(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor (all of one dtype, on one device) over the ranks, in place; see
        `torch.distributed.all_reduce`."""
        if self.size == 1:
            return
        for piece in _pieces(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in piece])
            with noticing_lost_peers():
                dist.all_reduce(flat)
            _split_into(piece, flat)

    @torch.no_grad()
    def tree_all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """`all_reduce` of a number of ranks that is a power of two, which sums pairs of them, then
        pairs of these, and so on: to the same bits as `questtrain.train.gradient_tree.TreeSum` of
        the ranks' tensors in their order."""
        distance = 1
        while distance < self.size:
            for piece in _pieces(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in piece])
                flat += _exchanged(flat, self.rank ^ distance)
                _split_into(piece, flat)
            distance *= 2

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite each tensor with rank 0's, in place."""
        if self.size > 1:
            for tensor in tensors:
                with noticing_lost_peers():
                    dist.broadcast(tensor, src=0)

    def all_reduce_max(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.size == 1:
            return number
        numbers = torch.tensor([number])
        with noticing_lost_peers():
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.control)
        return int(numbers)

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value, which must pickle."""
        if self.size == 1:
            return value
        values = [value]
        with noticing_lost_peers():
            dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def agree(self, work: Callable[[], T]) -> T:
        """What ``work`` returns on this rank, once every rank has done it. If it raises UserError,
        TrainingStopped or StopSignal on some, all end: the first of these ranks raises its error,
        the others ErrorOnAnotherRank."""
        if self.size == 1:
            return work()
        result: list[T] = []
        error: UserError | TrainingStopped | StopSignal | None = None
        try:
            result.append(work())
        except RankEndsAlone:
            raise
        except (UserError, TrainingStopped, StopSignal) as raised:
            error = raised
        codes = torch.zeros(self.size, dtype=torch.int64)
        if error is not None and not isinstance(error, ErrorOnAnotherRank):
            codes[self.rank] = error.exit_code
        with noticing_lost_peers():
            dist.all_reduce(codes, group=self.control)
        if not codes.any():
            return result[0]
        speaker = int(codes.nonzero()[0])
        if error is not None and speaker == self.rank:
            if isinstance(error, StopSignal):
                error.is_spokesman = True
            raise error
        raise ErrorOnAnotherRank(int(codes[speaker])) from error

    def fail_alone(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, which this rank does at a moment of its own: where it has peers, a
        UserError or ReadFailed becomes RankEndsAlone, with the same exit code."""
        try:
            return work()
        except (UserError, ReadFailed) as error:
            if self.size == 1:
                raise
            alone = RankEndsAlone(str(error))
            alone.exit_code = error.exit_code
            raise alone from error

    def from_rank_0(self, work: Callable[[], T]) -> T:
        """What ``work`` returns on rank 0, which alone does it; it must pickle. See `agree`."""
        return self.broadcast_object(cast(T, self.agree(lambda: work() if self.is_first else None)))

    def agree_rank_0_first(self, work: Callable[[], T]) -> T:
        """`agree`, where the others begin when rank 0 has left its result on disk for them."""
        if self.is_first:
            result = self.agree(work)
            self.agree(lambda: None)
            return result
        self.agree(lambda: None)
        return self.agree(work)


def world_from(environment: Mapping[str, str]) -> World:
    """The World that torchrun's variables describe, not yet joined; UserError if some are missing
    or senseless."""
    if environment.get("WORLD_SIZE", "1") == "1":
        return World()
    missing = [name for name in VARIABLES if name not in environment]
    if missing:
        raise UserError(
            f"WORLD_SIZE={environment['WORLD_SIZE']} asks for one run of several processes, which"
            f" needs {', '.join(missing)} too: torchrun sets them, docs/cluster.md says how under"
            " srun."
        )
    try:
        rank, size, local_rank, _ = (
            int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        )
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE, LOCAL_RANK, MASTER_PORT: {error}.") from error
    if not 0 <= rank < size or local_rank < 0:
        raise UserError(f"RANK={rank} of WORLD_SIZE={size}, LOCAL_RANK={local_rank}: impossible.")
    return World(rank, size, local_rank)


@contextmanager
def join_world(on_gpus: bool, patience: float) -> Iterator[World]:
    """The World of the environment, its groups made and closed again; a rank may be missing for
    ``patience`` seconds (`questtrain.train.meeting`, `questtrain.train.watching`).

    At `RankEndsAlone` a process on a GPU says why and is gone at once: closing the groups would
    wait for the gradients of a dead rank.
    """
    world = world_from(os.environ)
    stop_with_agent(os.environ)
    if world.size == 1:
        yield world
        return
    if not world.is_first:
        logging.getLogger("questtrain").setLevel(logging.ERROR)
    meeting = meet(world.rank, world.size, world.local_rank, patience)
    try:
        with (
            watching(meeting, world.rank, patience),
            _groups(world, meeting, on_gpus, patience) as whole,
        ):
            yield whole
    except RankEndsAlone as error:
        if on_gpus:
            if not isinstance(error, PeerLost):
                print(f"stopped: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)
        raise


@contextmanager
def _groups(world: World, meeting: Meeting, on_gpus: bool, patience: float) -> Iterator[World]:
    """The World with its two groups."""
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    timeout = timedelta(seconds=patience + SECONDS_TO_NAME)
    with noticing_lost_peers():
        dist.init_process_group(
            backend, store=meeting.store, rank=world.rank, world_size=world.size, timeout=timeout
        )
    closes = True
    try:
        with noticing_lost_peers():
            control = dist.new_group(backend="gloo", timeout=PREPARATION)
        yield World(world.rank, world.size, world.local_rank, control)
    except RankEndsAlone:
        closes = not on_gpus
        raise
    finally:
        if closes:
            dist.destroy_process_group()


def _exchanged(mine: Tensor, partner: int) -> Tensor:
    """The partner's tensor of the same shape, which gets this rank's."""
    theirs = torch.empty_like(mine)
    both = [dist.P2POp(dist.isend, mine, partner), dist.P2POp(dist.irecv, theirs, partner)]
    with noticing_lost_peers():
        for work in dist.batch_isend_irecv(both):
            work.wait()
    return theirs


def _split_into(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Fill the tensors with what lies one after the other."""
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def _pieces(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in lists of at most about `MESSAGE_BYTES`."""
    piece: list[Tensor] = []
    size = 0
    for tensor in tensors:
        piece.append(tensor)
        size += tensor.nbytes
        if size >= MESSAGE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
