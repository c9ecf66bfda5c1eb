"""The one exception that means "the input is wrong", and how messages are phrased."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: the command line prints the message alone and exits with code 2."""

    exit_code = 2


class TrainingStopped(Exception):
    """A run that ends early (diverged, out of memory, a signal): message alone, its exit code."""

    exit_code = 1


class WriteFailed(TrainingStopped, OSError):
    """A file could not be written: the disk is full or fails, a quota or a size limit is reached.

    ``reason`` is the system's word for it; ``advice`` ends the message. The exit code is the
    EX_IOERR of sysexits.h. It is an OSError, too, for who answers every kind of those.
    """

    exit_code = 74

    def __init__(self, number: int, reason: str, file: str, room: str, advice: str = "") -> None:
        OSError.__init__(self, number, reason, file)
        self.room, self.advice = room, advice

    def advising(self, advice: str) -> WriteFailed:
        """The same error with another advice."""
        number, reason, file = self.errno or 0, str(self.strerror), str(self.filename)
        return WriteFailed(number, reason, file, self.room, advice)

    def __str__(self) -> str:
        advice = f". {self.advice}" if self.advice else ""
        return f"{self.filename} cannot be written: {self.strerror}{self.room}{advice}"


class ReadFailed(TrainingStopped, OSError):
    """A file could not be read, though it was tried again for a while: its disk or the way to it
    fails. Like WriteFailed an OSError, with the same exit code."""

    exit_code = 74

    def __init__(self, number: int, reason: str, file: str, advice: str = "") -> None:
        OSError.__init__(self, number, reason, file)
        self.advice = advice

    def advising(self, advice: str) -> ReadFailed:
        """The same error with another advice."""
        return ReadFailed(self.errno or 0, str(self.strerror), str(self.filename), advice)

    def __str__(self) -> str:
        advice = self.advice or "When it can be read again, the same command goes on"
        return f"{self.filename} cannot be read, tried several times: {self.strerror}. {advice}"


class PreparationStopped(TrainingStopped):
    """The preparation of data ends early, because the hub or a file system fails for long. What is
    made is kept. The exit code is that of ReadFailed."""

    exit_code = 74


class ErrorOnAnotherRank(TrainingStopped):
    """Another process of the same run says why it ends; this one only exits, with its code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"another process of this run ends it with exit code {exit_code}.")
        self.exit_code = exit_code


def counted(number: int, one: str, more: str) -> str:
    """``1 answer is``, ``0 answers are``, ``2,000 answers are``"""
    return f"{number:,} {one if number == 1 else more}"


NEAR = 0.51
"""Of difflib's likeness, from 0 to 1: half of the letters in the same order (``frob`` and ``info``)
is none, more than that (``fp16`` and ``float16``) is one."""


def nearest(value: str, choices: Iterable[str]) -> str | None:
    """The choice closest to ``value``, or None when nothing comes close."""
    by_lower = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(value.lower(), by_lower, n=1, cutoff=NEAR)
    return by_lower[matches[0]] if matches else None


def suggestion(value: str, choices: Iterable[str]) -> str:
    """``" Did you mean '100M'?"`` to end a message with; empty when nothing comes close."""
    close = nearest(value, choices)
    return "" if close is None else f" Did you mean {close!r}?"


def unknown(what: str, value: object, choices: Iterable[str]) -> UserError:
    """`unknown model '110M': choose from 30M, 100M, …. Did you mean '100M'?`"""
    choices = list(choices)
    return UserError(
        f"unknown {what} {str(value)!r}: choose from {', '.join(choices)}."
        + suggestion(str(value), choices)
    )
