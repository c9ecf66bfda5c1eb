"""What a person watching a run sees: a bar on a terminal, lines in a job's log."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from questtrain.train import metrics
from questtrain.train.metrics import Progress
from tests.training_data import TINY


def test_a_terminal_shows_loss_speed_and_time_left(corpus, tmp_path):
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    words = ["train", *TINY, *corpus, "max_steps=40", "log_every=1", f"runs_dir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "questtrain.cli.main", *words],
        stdout=subprocess.DEVNULL,
        stderr=inside,
    )
    os.close(inside)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    last = shown.decode().split("\r")
    bars = [line for line in last if re.search(r"\d+/40 \[\d\d:\d\d<\d\d:\d\d", line)]
    assert any(re.search(r"loss \d\.\d{4}, [\d,]+ tokens/s", line) for line in bars)


def test_a_log_gets_a_line_now_and_then(caplog, monkeypatch):
    """Without a terminal: one line an interval, not one a step."""
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(metrics.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(metrics.sys.stderr, "isatty", lambda: False, raising=False)
    progress = Progress(total=100, start=0)
    with caplog.at_level("INFO"):
        for step in range(1, 11):
            row = {"step": step, "train_loss": 2.5, "tokens": 64 * step, "tokens_per_second": 32.0}
            progress.show(row)
    progress.close()
    assert len(caplog.messages) == 3
    assert caplog.messages[0] == "step 3/100  loss 2.5000  32 tokens/s  03:14 left"
