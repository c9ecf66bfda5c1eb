"""The ranks of a run as their messages name them, and who of them does what for the others."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Member:
    """One rank: its process ``pid`` on ``host``. Ranks of one ``kernel`` may send each other
    signals: it names the machine's boot and the namespace of process ids."""

    rank: int
    host: str
    pid: int
    kernel: str

    @classmethod
    def here(cls, rank: int) -> Member:
        """This process."""
        return cls(rank, socket.gethostname(), os.getpid(), _kernel())


Roster = Sequence[Member]
"""All ranks of a run, in order."""


def named(ranks: Collection[int], roster: Roster) -> str:
    """``rank 3 of 8 (host b, pid 12)``; ``ranks 2, 3 of 8 (host b, pids 12, 13)``, by host"""
    by_host: dict[str, list[Member]] = {}
    for rank in sorted(ranks):
        by_host.setdefault(roster[rank].host, []).append(roster[rank])
    return " and ".join(
        f"rank{_s(members)} {_listed(member.rank for member in members)} of {len(roster)}"
        f" (host {host}, pid{_s(members)} {_listed(member.pid for member in members)})"
        for host, members in by_host.items()
    )


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


def _s(members: Collection[Member]) -> str:
    return "" if len(members) == 1 else "s"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _kernel() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux: a host's name has to do
        return socket.gethostname()
