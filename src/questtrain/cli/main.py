"""``questtrain COMMAND …``: dispatch, exit codes, and the page that ``--help`` shows.

Commands are imported when they are used, so that help answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from questtrain import __version__
from questtrain.cli.commands import COMMANDS
from questtrain.errors import Elsewhere, TrainingStopped, UserError, unknown

SECONDS_TO_SPEAK = 1.0
"""torchrun ends all processes of a run when one does: the one that says why goes first."""

HELP = f"""questtrain {__version__}: Llama pretraining with quantized weights and activations

usage: questtrain COMMAND [key=value …]

{chr(10).join(f"  {name:<12}{text}" for name, text in COMMANDS.items())}

A first run, on any machine, in minutes:
  questtrain train model=nano bits=w4a4 data=stdlib

`questtrain COMMAND --help` explains a command and lists its settings.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 for bad input, 1 when training had to stop."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "huggingface_hub", "filelock", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    try:
        return _dispatch(words[0], words[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Elsewhere as error:
        time.sleep(SECONDS_TO_SPEAK)
        return error.exit_code
    except TrainingStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _dispatch(command: str, words: list[str]) -> int:
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    code: int = import_module(f"questtrain.cli.{command}").main(words)
    return code


if __name__ == "__main__":
    sys.exit(main())
