"""What a window of load amounts to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from questtrain.bench.serve.client import Stream
from questtrain.bench.serve.load import Window

PERCENTILES = (50, 95, 99)


def numbers_of(windows: Sequence[Window]) -> dict[str, Any]:
    """Of windows of equal load, one after the other: ``tokens_per_second`` (the median of the
    windows, ``…_low`` and ``…_high`` of them), ``requests_per_second`` that ended, ``requests``
    whose answer was asked for in a window and had no error, and ``errors`` of any. Milliseconds:
    ``first_token_…`` from asking to the first token; ``token_…`` between an answer's tokens, its
    mean; ``gap_…`` between the events of a stream, none averaged. None where no answer has that.
    ``client_busy``: the part of the time that whoever measures computed."""
    rates = [tokens_in(window) / window.seconds for window in windows]
    seconds = sum(window.seconds for window in windows)
    streams = [stream for window in windows for stream in _asked_in(window)]
    whole = [stream for stream in streams if stream.error is None and stream.arrivals]
    ended = sum(
        window.begin <= stream.arrivals[-1] < window.end
        for window in windows
        for stream in _whole(window)
    )
    gaps = [gap for window in windows for gap in _gaps(window)]
    return {
        "tokens_per_second": float(np.median(rates)),
        "tokens_per_second_low": min(rates),
        "tokens_per_second_high": max(rates),
        "requests_per_second": ended / seconds,
        "requests": len(whole),
        "errors": sum(s.error is not None for window in windows for s in window.streams),
        **_percentiles("first_token", [stream.seconds_to_first for stream in whole]),
        **_percentiles("token", [s.seconds_per_token for s in whole if s.tokens > 1]),
        **_percentiles("gap", gaps),
        "client_busy": sum(window.processor_seconds for window in windows) / seconds,
    }


def tokens_in(window: Window) -> float:
    """Tokens that arrived in the window; an answer's tokens are spread over its events evenly."""
    total = 0.0
    for stream in _whole(window):
        inside = sum(window.begin <= arrival < window.end for arrival in stream.arrivals)
        total += inside * stream.tokens / len(stream.arrivals)
    return total


def _whole(window: Window) -> Iterator[Stream]:
    return (stream for stream in window.streams if stream.error is None and stream.arrivals)


def _asked_in(window: Window) -> Iterator[Stream]:
    return (stream for stream in window.streams if window.begin <= stream.asked < window.end)


def _gaps(window: Window) -> Iterator[float]:
    for stream in _whole(window):
        for before, arrival in zip(stream.arrivals, stream.arrivals[1:], strict=False):
            if window.begin <= before and arrival < window.end:
                yield arrival - before


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    if not seconds:
        return {f"{name}_p{percentile}": None for percentile in PERCENTILES}
    found = 1e3 * np.percentile(seconds, PERCENTILES)
    return {f"{name}_p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}
