"""The ranks of a run as their messages name them, and who of them does what for the others."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from questtrain.process.kernel import boot_id, pid_namespace


@dataclass(frozen=True)
class Member:
    """One rank: its process ``pid`` on ``host``. Ranks of one ``kernel`` may send each other
    signals: it names the machine's boot and the namespace of process ids, or, where the system does
    not tell (it is not Linux), the host."""

    rank: int
    host: str
    pid: int
    kernel: str

    @classmethod
    def here(cls, rank: int) -> Member:
        """This process."""
        boot, numbers, host = boot_id(), pid_namespace(), socket.gethostname()
        return cls(rank, host, os.getpid(), f"{boot}/{numbers}" if boot and numbers else host)


Roster = Sequence[Member]
"""All ranks of a run, in order."""


def named(ranks: Collection[int], roster: Roster) -> str:
    """``rank 3 of 8 (host b, pid 12)``; ``ranks 2, 3 of 8 (host b, pids 12, 13)``, by host"""
    by_host: dict[str, list[Member]] = {}
    for rank in sorted(ranks):
        by_host.setdefault(roster[rank].host, []).append(roster[rank])
    return " and ".join(
        f"{numbered('rank', [member.rank for member in members])} of {len(roster)}"
        f" (host {host}, {numbered('pid', [member.pid for member in members])})"
        for host, members in by_host.items()
    )


def numbered(what: str, numbers: Collection[int]) -> str:
    """``rank 3``; ``ranks 2, 3``."""
    return f"{what}{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def speakers(ranks: Collection[int], roster: Roster) -> set[int]:
    """Who says that ``ranks`` are to blame: the first of the others. Of rank 0 one on each other
    machine says it, too: there nobody can know whether rank 0's whole machine is gone."""
    others = [member for member in roster if member.rank not in ranks]
    said_by = {member.rank for member in others[:1]}
    if 0 in ranks:
        machines = {member.kernel: member.rank for member in reversed(others)}
        said_by |= {rank for kernel, rank in machines.items() if kernel != roster[0].kernel}
    return said_by


def lowest_beside(rank: int, ranks: Collection[int], roster: Roster) -> int | None:
    """The first rank but ``ranks`` that can send ``rank`` a signal."""
    kernel = roster[rank].kernel
    others = (m.rank for m in roster if m.kernel == kernel and m.rank not in ranks)
    return next(others, None)
