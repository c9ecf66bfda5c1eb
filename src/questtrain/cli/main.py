"""``questtrain COMMAND …``: dispatch, exit codes, and the page that ``--help`` shows.

Commands are imported when they are used, so that help answers at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from questtrain.cli.commands import ANSWER_WITHOUT_WORDS, COMMANDS
from questtrain.errors import ErrorOnAnotherRank, TrainingStopped, UserError, unknown
from questtrain.process.signals import Interrupted, StopSignal, stops_raise
from questtrain.version import __version__

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
    """Run one command; 0 on success, 2 for bad input, 1 when training had to stop, 74 when the disk
    refused a file, 128 + a signal's number when that ended it."""
    try:
        with stops_raise() as requests:
            return _answer(list(sys.argv[1:] if arguments is None else arguments))
    except BaseException as error:
        stop = error if isinstance(error, StopSignal) else None
        if stop is not None and (interrupted := _interrupted_before(stop)) is not None:
            return _told(interrupted)
        number = requests.number  # a library may have made another error of it
        if not number and isinstance(error, KeyboardInterrupt):
            number = signal.SIGINT
        if stop is None and number:
            stop = StopSignal(number)
        if stop is None:
            raise
        if stop.is_spokesman:
            print(f"stopped: {stop}", file=sys.stderr)
        return stop.exit_code


def _interrupted_before(error: BaseException | None) -> Interrupted | None:
    """The stop that was under way, with its step saved, when another signal came: a cluster sends
    several."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error


def _told(error: TrainingStopped) -> int:
    """The exit code of what has been said."""
    print(f"stopped: {error}", file=sys.stderr)
    return error.exit_code


def _answer(words: list[str]) -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)  # of others, warnings only
    logging.getLogger("questtrain").setLevel(logging.INFO)
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
    except ErrorOnAnotherRank as error:
        time.sleep(SECONDS_TO_SPEAK)
        return error.exit_code
    except TrainingStopped as error:
        return _told(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _dispatch(command: str, words: list[str]) -> int:
    """A command is a module of ours with ``help_page(words)`` and ``main(words)``."""
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    module = import_module(f"questtrain.cli.{command}")
    is_query = words[:1] == ["query"]  # of a shell, which repeats words of any line
    asked = not is_query and {"-h", "--help"} & set(words)
    if asked or not (words or command in ANSWER_WITHOUT_WORDS):
        print(module.help_page(words), end="")
        return 0
    code: int = module.main(words)
    return code


if __name__ == "__main__":
    sys.exit(main())
