"""The main program of a data worker: makes pieces in a process of its own.

Tasks come as JSON lines on standard input; token counts, the piece's record, or an error go out as
JSON lines on standard output. Plain subprocesses rather than `multiprocessing`: they need no
``if __name__ == "__main__"`` in the caller's script, inherit no threads, and a worker whose parent
was killed finds its pipes closed and ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from dataclasses import asdict
from typing import Any, TextIO

from questtrain.data.piece import PieceTask, make_piece
from questtrain.data.tokenizer import Tokenizer, load_tokenizer
from questtrain.errors import PreparationStopped, UserError
from questtrain.process.signals import STOP_SIGNALS


def main() -> None:
    """Serve tasks until standard input closes."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent gets it too, and ends us
    # What libraries print must not get between the messages.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tokenizers: dict[tuple[str, int], Tokenizer] = {}
    for line in sys.stdin:
        task = PieceTask(**json.loads(line))
        key = task.tokenizer, task.bos_id
        if key not in tokenizers:
            tokenizers[key] = load_tokenizer(task.tokenizer, task.tokenizer_name, task.bos_id)
        _send(messages, _answer(task, tokenizers[key], messages))


def _answer(task: PieceTask, tokenizer: Tokenizer, messages: TextIO) -> dict[str, Any]:
    try:
        record = make_piece(task, tokenizer, lambda n: _send(messages, {"tokens": n}))
        return {"record": asdict(record)}
    except UserError as error:
        return {"error": str(error)}
    except PreparationStopped as error:
        return {"stopped": str(error)}
    except Exception:
        return {"crash": traceback.format_exc()}


def _send(messages: TextIO, message: dict[str, Any]) -> None:
    try:
        messages.write(json.dumps(message) + "\n")
        messages.flush()
    except BrokenPipeError:
        # The parent is gone. Unwinding removes the half-written shards; os._exit would not.
        sys.exit(1)
