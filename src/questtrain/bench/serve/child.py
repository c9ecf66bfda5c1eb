"""The server's process of a benchmark: what `questtrain serve` runs, of any model.

Standard input brings its settings and its engine; with the end of it the server stops, as it does
at SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from questtrain.errors import TrainingStopped, UserError
from questtrain.inference.engine.messages import read_message
from questtrain.inference.serve.server import serve


def main() -> int:
    """Serve until standard input ends; the last line of standard error says what went wrong."""
    config, load = read_message(os.fdopen(0, "rb", closefd=False))
    threading.Thread(target=_stop_at_the_end, daemon=True).start()
    try:
        serve(config, load)
    except (UserError, TrainingStopped) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _stop_at_the_end() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
