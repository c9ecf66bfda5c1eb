"""What a sweep shows: on a terminal, live; elsewhere, lines and tables that hold every row."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from questtrain.scaling.numbers import count_text, duration
from questtrain.sweep import read_sweep
from questtrain.sweep.attempt import claim
from questtrain.sweep.console import console
from questtrain.sweep.display import live_view, plan_view, status_view
from questtrain.sweep.estimate import choose_speed
from questtrain.sweep.manifest import record_jobs
from questtrain.sweep.state import read_states
from tests.sweep.test_state import job_in, outcome, trained, write
from tests.test_architecture import FILES


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m 0s"), (200, "3m 20s"), (18_720, "5h 12m"), (183_600, "2d 3h")],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7"), (1_234, "1.23k"), (3e9, "3B"), (11_654_928, "11.7M"), (2e13, "20T")],
)
def test_amounts_have_three_digits(number, text):
    assert count_text(number) == text


def test_the_live_view_has_what_runs_and_the_table_has_everything(tmp_path, capsys):
    """A reason is printed as it is, brackets included."""
    jobs = [job_in(tmp_path, name) for name in ("first", "second", "third")]
    descriptor = claim(jobs[0])
    write(jobs[1].attempt_file, outcome(1, "odd [bold]value[/bold]"))
    states = read_states(jobs)
    console().print(live_view(states))
    live = capsys.readouterr().out
    console().print(status_view(states))
    table = capsys.readouterr().out
    os.close(descriptor)
    assert "first" in live
    assert "second" not in live
    assert all(name in table for name in ("first", "second", "third"))
    assert "odd [bold]value[/bold]" in table
    for text in (live, table):
        assert text.splitlines()[-1] == "0 done, 1 running, 1 failed, 1 waiting; 0% of the FLOPs"


NAMES = ("exp[old]", "[b]x", "a[/red]", "[link=file:///x]y", r"back\[slash", ":cat:-:x:", "[]")


def test_names_and_reasons_are_shown_as_they_are(tmp_path, capsys):
    """In every view of a sweep, brackets and colons are no markup."""
    jobs = [job_in(tmp_path, name) for name in NAMES]
    for job in jobs:
        write(job.attempt_file, outcome(1, f"reason {job.name}"))
    states = read_states(jobs)
    for view in (status_view(states), plan_view(states, choose_speed(jobs, 0.4, "H100"))):
        console().print(view)
        shown = capsys.readouterr().out
        assert all(name in shown for name in NAMES)


def test_every_command_prints_by_the_literal_console():
    """A Console of rich's own would read markup in the names it prints."""
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"rich(\.console)? import .*\bprint\b|RichHandler|from_markup", text)
        assert len(re.findall(r"\bConsole\(", text)) == (file.name == "console.py"), file


def test_status_on_a_terminal_is_live_until_nothing_runs(tmp_path):
    """A process shows a run that this one holds, and ends with the table when it is let go."""
    folder = tmp_path / "fig2_alignment"
    job = job_in(folder, "held")
    record_jobs(read_sweep("fig2_alignment"), folder, [job])
    trained(job, 50)
    descriptor = claim(job)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "questtrain.cli.main", "sweep", "fig2_alignment", "--status"]
    with subprocess.Popen([*command, f"runs_dir={tmp_path}"], stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        while b"1 running" not in shown:
            shown += os.read(ours, 4096)
        os.close(descriptor)
        while b"1 waiting" not in shown:
            shown += os.read(ours, 4096)
        assert process.wait(timeout=30) == 0
    os.close(ours)
