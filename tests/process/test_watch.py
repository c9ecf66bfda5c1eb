"""The ranks' watches without training: rank 0's in this process, the others over real sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from questtrain.process.json_lines import LONGEST
from questtrain.process.progress import Progress
from questtrain.process.roster import Member, lowest_beside, named, speakers
from questtrain.process.watch_hub import Hub
from questtrain.process.watch_member import Spoke, connect

WORD = "of the run"
ROSTER = [Member(rank, "abc"[rank // 2], 100 + rank, "abc"[rank // 2]) for rank in range(6)]

Say = Callable[..., socket.socket]


@pytest.fixture
def place() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=16)


@pytest.fixture
def hub(place, request) -> Iterator[Hub]:
    """Rank 0's watch, with a minute's patience or the test's own."""
    watch = Hub(ROSTER, getattr(request, "param", 60.0), place, WORD)
    watch.start()
    yield watch
    watch.close(alone=False)


@pytest.fixture
def say(place) -> Iterator[Say]:
    """A connection to rank 0's watch that has sent these lines."""
    port = place.getsockname()[1]
    with ExitStack() as connections:

        def connected(*lines: object) -> socket.socket:
            peer = connections.enter_context(socket.create_connection(("127.0.0.1", port)))
            for line in lines:
                peer.sendall(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
            return peer

        yield connected


def hello(rank: int) -> dict[str, object]:
    return {"word": WORD, "rank": rank}


def report(collectives: int, seconds: float = 0.0) -> dict[str, object]:
    return {"report": {"collectives": collectives, "seconds": seconds, "place": ""}}


def joined(place: socket.socket, rank: int) -> Spoke:
    connection = connect(["no-such-host.invalid", "127.0.0.1"], place.getsockname()[1])
    assert connection is not None
    watch = Spoke(rank, ROSTER, 60.0, connection, WORD)
    watch.start()
    return watch


def test_the_dead_of_one_moment_are_named_together_and_all_hear_it(hub, say, place, capsys) -> None:
    """Without a goodbye, at once, on every rank; the lowest that is left says it alone."""
    other = joined(place, 5)
    dying = [say(hello(rank)) for rank in (2, 3)]
    time.sleep(0.2)
    for connection in dying:
        connection.close()
    found = hub.verdict(10.0)
    assert found is not None
    assert (found.ranks, found.kind, found.exit_code) == ((2, 3), "died", 1)
    assert found.text.startswith("ranks 2, 3 of 6 (host b, pids 102, 103) died without a word")
    assert other.verdict(10.0) == found
    other.close(alone=False)
    assert capsys.readouterr().err.count("stopped: ranks 2, 3 of 6") == 1


def test_rank_0s_death_is_said_by_rank_1(place, capsys) -> None:
    with ExitStack() as hubs:
        watches = []
        for rank in (1, 3):
            connection = connect(["127.0.0.1"], place.getsockname()[1])
            assert connection is not None
            hubs.enter_context(place.accept()[0])
            watches.append(Spoke(rank, ROSTER, 60.0, connection, WORD))
            watches[-1].start()
    for watch in watches:
        found = watch.verdict(10.0)
        assert found is not None
        assert (found.ranks, found.kind) == ((0,), "died")
        watch.close(alone=False)
    assert capsys.readouterr().err.count("stopped: rank 0 of 6 (host a, pid 100) died") == 1
    place.close()


@pytest.mark.parametrize("alone", [False, True])
def test_a_goodbye_is_no_death(hub, say, place, capsys, alone) -> None:
    """Who leaves without the others has said why: they end without a word."""
    joined(place, 1).close(alone)
    found = hub.verdict(0.7)
    assert (found.kind if found else None) == ("left" if alone else None)
    assert capsys.readouterr().err == ""


def test_strangers_change_nothing(hub, say) -> None:
    """What does not know the word, or sends what is no message, is hung up on."""
    noise = [{"word": "guess", "rank": 1}, hello(0), hello(6), hello("1"), [], 7, b"\xff\n"]
    for line in [*noise, b"x" * (2 * LONGEST), b"[" * 60_000 + b"\n"]:
        stranger = say()
        stranger.settimeout(10)
        try:
            stranger.sendall(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
            while stranger.recv(100):
                pass
        except (ConnectionError, BrokenPipeError):
            pass
    first, second = say(hello(1)), say()
    time.sleep(0.2)
    second.sendall(json.dumps(hello(1)).encode() + b"\n")
    second.settimeout(10)
    assert second.recv(100) == b""
    first.sendall(b'{"goodbye": false}\n')
    assert hub.verdict(1.0) is None


@pytest.mark.parametrize("hub", [0.4], indirect=True)
@pytest.mark.parametrize(
    ("collectives", "seconds", "culprits"),
    [(9, 0.0, (0,)), (0, 0.0, None), (0, 5.0, (1,)), (1, 9.0, (1,)), (1, 0.3, (0, 1))],
)
def test_who_the_others_wait_for_hangs(hub, say, collectives, seconds, culprits) -> None:
    """Of two ranks that both hang, the one that has entered fewer collectives: the other waits for
    its gradients. Rank 0 has entered one."""
    with hub.progress.collective():
        pass
    peer = say(hello(1), report(collectives, seconds))
    done = threading.Event()

    def beats() -> None:
        while not done.wait(0.05):
            peer.sendall(json.dumps(report(collectives, seconds)).encode() + b"\n")

    beating = threading.Thread(target=beats)
    with hub.progress.step():
        beating.start()
        found = hub.verdict(1.0)
    done.set()
    beating.join()
    assert (found.ranks if found else None) == culprits
    if found:
        assert found.kind == "stuck"
        assert "hung in a step for 0.4 s (train.rank_timeout)" in found.text


@pytest.mark.parametrize("hub", [0.4], indirect=True)
def test_silence_is_noticed(hub, say) -> None:
    say(hello(4))
    found = hub.verdict(10.0)
    assert found is not None
    assert (found.ranks, found.kind) == ((4,), "silent")


def test_what_a_main_thread_tells() -> None:
    progress = Progress()
    assert progress.report(1.0).seconds == 0  # outside of a step any work may take its time
    with progress.step():
        time.sleep(0.05)
        assert 0.05 <= progress.report(1.0).seconds < 5
        with progress.collective():
            assert progress.report(1.0).seconds == 0
        assert progress.report(1.0).seconds < 0.05
    assert (progress.collectives, progress.report(1.0).place) == (1, "")


def test_how_ranks_are_named() -> None:
    assert named([4], ROSTER) == "rank 4 of 6 (host c, pid 104)"
    two_hosts = "rank 1 of 6 (host a, pid 101) and ranks 2, 3 of 6 (host b, pids 102, 103)"
    assert named([3, 1, 2], ROSTER) == two_hosts
    assert (speakers([1, 2], ROSTER), speakers([0], ROSTER)) == ({0}, {1, 2, 4})
    assert (lowest_beside(3, [3], ROSTER), lowest_beside(3, [2, 3], ROSTER)) == (2, None)
