"""A server of a packed model and one of the same shape in BF16, each alone under the same load.

Both are what `questtrain serve` runs, in processes of their own; this process is the clients. The
servers are up together and take turns: while one is measured the other has nothing to do.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from questtrain.bench.results import Results, Row
from questtrain.bench.serve.client import Work
from questtrain.bench.serve.load import Window, closed_loop, open_loop
from questtrain.bench.serve.numbers import numbers_of
from questtrain.bench.serve.random_model import RandomModel
from questtrain.bench.serve.server import running_server
from questtrain.bench.settings import ServeLoadConfig
from questtrain.bench.timing import turns
from questtrain.config import TrainConfig
from questtrain.config.serve import ServeConfig
from questtrain.errors import counted
from questtrain.inference.engine.loading import ServedRun
from questtrain.inference.engine.messages import Load

log = logging.getLogger(__name__)

RIVAL = "bf16"
WARM_SECONDS = 0.5


@dataclass(frozen=True)
class ServedCases:
    """The settings of all servers; and of each model, by its name, the cases: `RIVAL` first."""

    server: ServeConfig
    models: Mapping[str, Mapping[str, TrainConfig]]


@dataclass(frozen=True)
class RunningCase:
    """A server that is up, and the bytes that it took of the device's memory (None on a CPU)."""

    url: str
    memory_bytes: int | None


def bench_serve(
    results: Results, served: ServedCases, config: ServeLoadConfig, device: torch.device
) -> None:
    """Fill ``results``, a load at a time; see `numbers_of`. ``speedup`` is of tokens a second, over
    BF16's."""
    for name, cases in served.models.items():
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            work = _work(config, cases[RIVAL])
            running = {}
            for case, train_config in cases.items():
                load = _load(case, train_config, served.server, config, folder, device)
                running[case] = _start(stack, served.server, load, folder / case, work, device)
                log.info("%s, %s: serving", name, case)
            for what in _loads(config):
                results.add(_rows(name, cases, running, work, what, config))
                log.info("%s, %s", name, _shown(what))


def _work(config: ServeLoadConfig, rival: TrainConfig) -> Work:
    vocab_size = rival.model.vocab_size
    assert vocab_size is not None
    return Work(
        config.prompt_tokens, config.output_tokens, vocab_size, config.temperature, config.seed
    )


def _load(
    case: str,
    of_case: TrainConfig,
    server: ServeConfig,
    config: ServeLoadConfig,
    folder: Path,
    device: torch.device,
) -> Load:
    """The run as it is, or random weights."""
    assert server.context is not None
    if config.run is not None and case != RIVAL:
        most = server.max_batch_size
        return ServedRun(config.run, config.device, None, True, most, server.context)
    own = folder / f"{case} tokenizer"
    own.mkdir()
    compiled = device.type == "cuda" if config.compile is None else config.compile
    most, context = server.max_batch_size, server.context
    return RandomModel(of_case, config.device, most, context, compiled, str(own))


def _start(
    stack: ExitStack,
    server: ServeConfig,
    load: Load,
    said: Path,
    work: Work,
    device: torch.device,
) -> RunningCase:
    """Start a server, and have it answer as many as it can at a time: what it compiles and the
    memory that it comes to need are behind it then."""
    before = _used_bytes(device)
    url = stack.enter_context(running_server(server, load, said.with_suffix(".log")))
    warm = closed_loop(url, work, server.max_batch_size, WARM_SECONDS)
    _tell_errors(str(said.name), [warm])
    after = _used_bytes(device)
    return RunningCase(url, None if before is None or after is None else after - before)


def _used_bytes(device: torch.device) -> int | None:
    """Of the device's memory, by all processes."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _loads(config: ServeLoadConfig) -> Iterator[dict[str, Any]]:
    """What a row says of its load: so many ``clients``, or requests at a ``rate``."""
    for clients in config.clients:
        yield {"clients": clients, "rate": None}
    if config.rate is not None:
        yield {"clients": None, "rate": config.rate}


def _rows(
    name: str,
    cases: Mapping[str, TrainConfig],
    running: Mapping[str, RunningCase],
    work: Work,
    what: dict[str, Any],
    config: ServeLoadConfig,
) -> list[Row]:
    if what["rate"] is None:
        measure = partial(closed_loop, clients=what["clients"], seconds=config.seconds)
    else:
        measure = partial(open_loop, rate=what["rate"], seconds=config.seconds)
    windows: dict[str, list[Window]] = {case: [] for case in cases}
    for turn, case in turns(cases, config.rounds):
        own = replace(work, seed=work.seed + turn)
        windows[case].append(measure(running[case].url, own))
    rows = []
    for case, of_case in windows.items():
        _tell_errors(f"{name}, {case}, {_shown(what)}", of_case)
        shape = {"model": name, "layers": cases[case].model.num_layers, **what}
        memory = running[case].memory_bytes
        rows.append({**shape, "case": case, **numbers_of(of_case), "memory_bytes": memory})
    rival = rows[0]["tokens_per_second"]
    return [{**row, "speedup": row["tokens_per_second"] / rival if rival else None} for row in rows]


def _shown(what: dict[str, Any]) -> str:
    if what["rate"] is None:
        return counted(what["clients"], "client", "clients")
    return f"{what['rate']:g} requests a second"


def _tell_errors(where: str, windows: list[Window]) -> None:
    errors = [s.error for window in windows for s in window.streams if s.error is not None]
    if errors:
        log.warning(
            "%s: %s, the first: %s", where, counted(len(errors), "error", "errors"), errors[0]
        )
