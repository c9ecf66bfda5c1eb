"""How long a call takes on a device, fairly against its rivals.

A case is a list of closures that do the same work on buffers of their own (`copies_beyond_cache`
says how many), so that no call finds its operands in the cache from the call before. On CUDA a
case is captured in one graph, which takes the host's launch cost out. Clocks and power drift, so
the cases take turns, in a new order each round, and each sample is warmed up for as long as it is
measured. Buffers should hold random numbers: zeros switch fewer transistors and run faster.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from questtrain.cuda_graph import capture

Calls = Sequence[Callable[[], object]]

GRAPH_MICROSECONDS = 400.0
"""A graph should last so long that the gap to the next replay, 1 to 2 µs, does not count."""
MAX_GRAPH_CALLS = 512
MAX_COPIES = 256
CPU_CACHE_BYTES = 1 << 16


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: median over the rounds, and their 10th and 90th percentiles."""

    median: float
    low: float
    high: float


Sampler = Callable[[Mapping[str, Calls]], dict[str, Timing]]
"""`measure` with everything but the cases settled."""


class Case(Protocol):
    """Something that can be repeated; one repetition is ``calls`` calls."""

    calls: int

    def sample(self, repeats: int) -> float:
        """Microseconds that ``repeats`` repetitions take, after as many that are not timed."""


def measure(
    cases: Mapping[str, Calls],
    rounds: int = 10,
    milliseconds: float = 2.0,
    device: torch.device | None = None,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time the cases against each other; ``milliseconds`` is the length of one sample, of which
    each case has one a round. Without a ``device``: the current GPU, or the CPU if there is none.

    Raises ValueError for a case without calls, and whatever a call raises.
    """
    if not all(cases.values()):
        raise ValueError(
            f"cases without calls: {[name for name, calls in cases.items() if not calls]}"
        )
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepared = _prepare(cases, device)
    repeats = {
        name: max(1, round(milliseconds * 1e3 / max(case.sample(1), 1e-3)))
        for name, case in prepared.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for _, name in turns(prepared, rounds, seed):
        case, count = prepared[name], repeats[name]
        samples[name].append(case.sample(count) / (count * case.calls))
    return {name: timing(values) for name, values in samples.items()}


def turns(cases: Iterable[str], rounds: int, seed: int = 0) -> Iterator[tuple[int, str]]:
    """The round and the case: each case once a round, in a new order."""
    names, order = list(cases), random.Random(seed)
    for turn in range(rounds):
        for name in order.sample(names, len(names)):
            yield turn, name


def timing(samples: Sequence[float]) -> Timing:
    """Median, 10th and 90th percentile of samples in microseconds."""
    low, median, high = np.percentile(samples, (10, 50, 90))
    return Timing(float(median), float(low), float(high))


def mark(device: torch.device) -> Any:
    """Now: an event on the device's current stream, or the host's seconds."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def microseconds(start: Any, end: Any) -> float:
    """From one `mark` to a later one, which is waited for."""
    if isinstance(start, float):
        return float(end - start) * 1e6
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def cache_bytes(device: torch.device) -> int:
    """The size of the device's last cache: a GPU's L2; a CPU's is taken as small, since its runs
    here are for correctness."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return CPU_CACHE_BYTES


def copies_beyond_cache(bytes_per_copy: int, device: torch.device) -> int:
    """How many copies of a call's operands together take twice the device's cache, from 2 to 256:
    operands so small that more were needed lie in the cache in use too."""
    count = math.ceil(2 * cache_bytes(device) / max(1, bytes_per_copy))
    return min(max(2, count), MAX_COPIES)


def _prepare(cases: Mapping[str, Calls], device: torch.device) -> dict[str, Case]:
    if device.type != "cuda":
        return {name: CpuCase(calls) for name, calls in cases.items()}
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        pool = torch.cuda.graph_pool_handle()
        return {name: GraphCase(calls, stream, pool) for name, calls in cases.items()}


class CpuCase:
    """Plain calls, timed by the host's clock."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.calls = len(calls)

    def sample(self, repeats: int) -> float:
        """As `Case.sample`, by the host's clock."""
        self._run(repeats)
        start = time.perf_counter()
        self._run(repeats)
        return (time.perf_counter() - start) * 1e6

    def _run(self, repeats: int) -> None:
        for _ in range(repeats):
            for call in self._calls:
                call()


class GraphCase:
    """Calls captured in one CUDA graph, passes over them repeated until it lasts long enough.

    All cases share a memory pool: nothing that a call returns is read afterwards, so that graphs
    may overwrite each other's outputs in any order.
    """

    def __init__(self, calls: Calls, stream: torch.cuda.Stream, pool: Any) -> None:
        self._stream, self._pool = stream, pool
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:  # lazy initialization and autotuning happen outside the capture
                call()
        self._graph, self.calls = self._capture(calls, 1), len(calls)
        once = self.sample(2) / 2
        passes = min(math.ceil(GRAPH_MICROSECONDS / once), MAX_GRAPH_CALLS // len(calls))
        if passes > 1:
            self._graph, self.calls = self._capture(calls, passes), passes * len(calls)

    def sample(self, repeats: int) -> float:
        """As `Case.sample`, between two events on the stream."""
        with torch.cuda.stream(self._stream):
            for _ in range(repeats):
                self._graph.replay()
            start = mark(self._stream.device)
            for _ in range(repeats):
                self._graph.replay()
            return microseconds(start, mark(self._stream.device))

    def _capture(self, calls: Calls, passes: int) -> torch.cuda.CUDAGraph:
        def run() -> None:
            for _ in range(passes):
                for call in calls:
                    call()

        return capture(run, self._stream, self._pool)[0]
