"""What counts as asking to stop, how urgently, and what stays as it was."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from questtrain.cli.main import main
from questtrain.process.signals import (
    STOP_SIGNALS,
    Interrupted,
    StopRequests,
    StopSignal,
    on_stop_signals,
    stops_raise,
)

INT, TERM, HUP, USR1, USR2 = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("sent", "number", "urgency"),
    [
        ([], 0, 0),
        ([TERM], TERM, 1),
        ([HUP, HUP, USR1, TERM], HUP, 1),
        ([TERM, INT], TERM, 1),
        ([TERM, INT, INT], TERM, 2),
        ([INT], INT, 1),
        ([INT, TERM, USR2], INT, 1),
        ([INT, INT], INT, 2),
        ([INT, INT, TERM, INT], INT, 3),
    ],
)
def test_only_a_second_ctrl_c_is_more_urgent(sent, number, urgency) -> None:
    asked = StopRequests()
    for each in sent:
        asked.note(each)
    assert (asked.number, asked.urgency) == (number, urgency)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_is_heard_and_the_handlers_before_come_back(number) -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    heard: list[int] = []
    with on_stop_signals(heard.append):
        send(number)
    assert heard == [number]
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


@pytest.mark.parametrize("number", [HUP, USR1, USR2])
def test_what_was_ignored_at_the_start_stays_ignored(number) -> None:
    """As nohup does with SIGHUP."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        heard: list[int] = []
        with on_stop_signals(heard.append), stops_raise():
            send(number)
        assert heard == []
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_outside_of_training_it_is_an_exception_with_the_shells_code(number) -> None:
    with pytest.raises(StopSignal, match=signal.Signals(number).name) as stop, stops_raise():
        send(number)
    assert stop.value.exit_code == 128 + number
    assert not isinstance(stop.value, Exception), "no library's `except Exception` swallows it"


def unwound(first: int, *later: int) -> tuple[int, bool]:
    """The signal that ends it, and whether it cleaned up while the later ones came."""
    cleaned = False
    try:
        with stops_raise():
            try:
                send(first)
            finally:
                for number in later:
                    send(number)
                cleaned = True
    except StopSignal as stop:
        return stop.number, cleaned
    raise AssertionError("no signal was heard")


def test_a_second_one_does_not_disturb_what_the_first_unwinds() -> None:
    """Except Ctrl-C twice."""
    assert unwound(TERM, HUP, INT) == (TERM, True)
    assert unwound(INT, TERM) == (INT, True)
    assert unwound(INT, INT) == (INT, False)


def test_in_another_thread_nothing_changes() -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    seen = []

    def work() -> None:
        with on_stop_signals(print):
            seen.extend(signal.getsignal(each) for each in STOP_SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before


@pytest.mark.parametrize("second", [TERM, USR2])
def test_one_that_comes_while_a_saved_run_ends_takes_nothing_back(
    second, monkeypatch, capsys
) -> None:
    """Slurm warns a process, then the one around it passes the warning on."""

    def training(command: str, words: list[str]) -> int:
        try:
            raise Interrupted(USR2, 622)
        finally:
            send(second)

    monkeypatch.setattr("questtrain.cli.main._dispatch", training)
    assert main(["train"]) == 128 + USR2
    assert capsys.readouterr().err == (
        "stopped: saved step 622; the same command continues from here.\n"
    )
