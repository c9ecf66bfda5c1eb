"""How the ranks of one run find each other, through the store at MASTER_ADDR:MASTER_PORT.

Each says who it is; rank 0 answers with the roster of all, and when everyone has seen itself in it
they begin. The store may outlive a start: torchrun's agent keeps one over its restarts, with all
that the ranks before have left in it. So a rank goes by a random name, and what belongs to this
start lies under a prefix of its own.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from questtrain.errors import ErrorOnAnotherRank, TrainingStopped
from questtrain.process.roster import Member, Roster, numbered

SECONDS_BETWEEN_LOOKS = 0.1

SECONDS_TO_ANSWER = 30.0
"""Of the store, once it could be reached."""

SECONDS_TO_HEAR = 2.0
"""How long rank 0 keeps a store for those who are to read that it has given up."""


@dataclass(frozen=True)
class Meeting:
    """What all ranks of this start know: a ``store`` of their own, who they are, and where rank 0's
    watch listens, which asks for the secret ``word``. Rank 0 holds the ``listener``."""

    store: Store
    roster: Roster
    addresses: list[str]
    port: int
    word: str
    listener: socket.socket | None = None


def meet(rank: int, size: int, local_rank: int, patience: float) -> Meeting:
    """Wait until all ranks are there, ``patience`` seconds at most. TrainingStopped, on one rank a
    host, where the store cannot be reached; on one of all, with the missing ones, where some have
    not come; on the others ErrorOnAnotherRank."""
    deadline = time.monotonic() + patience
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    speaks = local_rank == 0 or rank == 0
    try:
        store = PrefixStore("questtrain", _store(rank, deadline))
        if rank == 0:
            return _gather(store, size, deadline, place)
        return _arrive(store, rank, deadline, place, speaks or rank == 1)
    except (RuntimeError, OSError) as error:
        if not speaks:
            raise ErrorOnAnotherRank(TrainingStopped.exit_code) from error
        raise TrainingStopped(
            f"rank {rank} of {size} (host {socket.gethostname()}, pid {os.getpid()}) could not"
            f" reach the others at {place} (MASTER_ADDR, MASTER_PORT) within {patience:g} s"
            f" (train.rank_timeout): {str(error).splitlines()[0]}"
        ) from error


def _store(rank: int, deadline: float) -> Store:
    """The store, which rank 0 keeps itself unless torchrun does."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    keeper = None
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        keeper = _tcp_store("localhost", port, is_master=True)
    _wait_for(address, port, deadline)
    return keeper or _tcp_store(address, port, is_master=False)


def _tcp_store(address: str, port: int, is_master: bool) -> TCPStore:
    return TCPStore(
        address,
        port,
        is_master=is_master,
        timeout=timedelta(seconds=SECONDS_TO_ANSWER),
        wait_for_workers=False,
        multi_tenant=True,
    )


def _wait_for(address: str, port: int, deadline: float) -> None:
    """Return when something listens there; the last OSError at the deadline. TCPStore's own waiting
    hears no signal."""
    while True:
        try:
            left = max(SECONDS_BETWEEN_LOOKS, deadline - time.monotonic())
            socket.create_connection((address, port), timeout=min(5.0, left)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _gather(store: Store, size: int, deadline: float, place: str) -> Meeting:
    """Rank 0's part: read who is there until all are, and until they know."""
    me, others, shown = Member.here(0), range(1, size), None
    names: list[str] = []
    while True:
        here = [rank for rank in others if store.check([f"here/{rank}"])]
        if len(here) == size - 1:
            answers = [json.loads(store.get(f"here/{rank}")) for rank in others]
            if names != [answer["name"] for answer in answers]:
                if shown and shown.listener:
                    shown.listener.close()
                names = [answer["name"] for answer in answers]
                shown = _show(
                    store, [me, *(Member(**answer["member"]) for answer in answers)], names
                )
            if shown and store.check([f"seen/{name}" for name in names]):
                store.set(f"begin/{shown.word}", "")
                return shown
        if time.monotonic() > deadline:
            missing = _missing(store, size, here, names)
            _give_up(store, here)
            raise TrainingStopped(_not_come(missing, size, place))
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _show(store: Store, roster: Roster, names: list[str]) -> Meeting:
    """Publish the roster, and where the watch of rank 0 is to be reached."""
    alone = len({member.kernel for member in roster}) == 1
    dual = not alone and socket.has_dualstack_ipv6()
    listener = socket.create_server(
        ("127.0.0.1" if alone else "", 0),
        family=socket.AF_INET6 if dual else socket.AF_INET,
        dualstack_ipv6=dual,
        backlog=len(roster),
    )
    addresses = ["127.0.0.1"] if alone else [os.environ["MASTER_ADDR"], socket.gethostname()]
    word, port = secrets.token_hex(16), listener.getsockname()[1]
    told = {"roster": [asdict(m) for m in roster], "names": names, "word": word}
    store.set("roster", json.dumps({**told, "addresses": addresses, "port": port}))
    return Meeting(PrefixStore(word, store), roster, addresses, port, word, listener)


def _arrive(store: Store, rank: int, deadline: float, place: str, speaks: bool) -> Meeting:
    """Any other rank's part: say who it is until rank 0 has read it, then begin with all."""
    name = secrets.token_hex(8)
    answer = {"name": name, "member": asdict(Member.here(rank))}
    store.set(f"here/{rank}", json.dumps(answer))
    while True:
        told = _told(store, rank, name)
        if told is not None:
            store.set(f"seen/{name}", "")
            if store.check([f"begin/{told['word']}"]):
                roster = [Member(**member) for member in told["roster"]]
                own = PrefixStore(told["word"], store)
                return Meeting(own, roster, told["addresses"], told["port"], told["word"])
        if store.check([f"given_up/{name}"]):
            raise ErrorOnAnotherRank(TrainingStopped.exit_code)
        if time.monotonic() > deadline + SECONDS_TO_HEAR:
            if not speaks:
                raise ErrorOnAnotherRank(TrainingStopped.exit_code)
            raise TrainingStopped(_not_come([0], int(os.environ["WORLD_SIZE"]), place))
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _told(store: Store, rank: int, name: str) -> dict[str, Any] | None:
    """What rank 0 has published, if it is of this start."""
    if not store.check(["roster"]):
        return None
    told: dict[str, Any] = json.loads(store.get("roster"))
    names = told["names"]
    return told if len(names) >= rank and names[rank - 1] == name else None


def _missing(store: Store, size: int, here: Collection[int], names: list[str]) -> list[int]:
    """The ranks that have not come; of those whose answers may be of an earlier start, the ones
    that have not seen themselves in the roster."""
    absent = [rank for rank in range(1, size) if rank not in here]
    return absent or [
        rank for rank, name in enumerate(names, start=1) if not store.check([f"seen/{name}"])
    ]


def _give_up(store: Store, here: Collection[int]) -> None:
    """Tell those who are there, and let them read it: the store may end with this process."""
    for rank in here:
        store.set(f"given_up/{json.loads(store.get(f'here/{rank}'))['name']}", "")
    time.sleep(SECONDS_TO_HEAR)


def _not_come(missing: Collection[int], size: int, place: str) -> str:
    return (
        f"{numbered('rank', missing)} of {size} did not come to {place} (MASTER_ADDR, MASTER_PORT)"
        " in time (train.rank_timeout): look whether each was started, and can reach that address."
    )
