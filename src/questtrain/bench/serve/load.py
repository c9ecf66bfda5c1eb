"""Load on a server, and the window in which it counts.

A closed loop has so many clients, each of which asks again when its answer has ended; an open loop
has requests that arrive by chance (a Poisson process), whether or not the last have been answered.
What warms up is not counted: of a closed loop a first answer of every client, of different lengths,
so that the clients are out of step from then on; of an open one what comes before the first answer
has ended. Answers that are under way when the window ends are read to their end.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

from questtrain.bench.serve.client import Client, Stream, Work


@dataclass
class Window:
    """``seconds`` from ``begin`` on, both by `time.perf_counter`; ``begin`` is infinite until it is
    known, and the ``streams`` are all that were asked for."""

    seconds: float
    begin: float = float("inf")
    processor_seconds: float = 0.0
    """What this process computed in the window: near ``seconds``, it was the limit."""
    streams: list[Stream] = field(default_factory=list)

    @property
    def end(self) -> float:
        return self.begin + self.seconds

    @property
    def is_over(self) -> bool:
        return time.perf_counter() > self.end

    def open(self) -> None:
        """It begins now, unless it has begun."""
        if self.begin == float("inf"):
            self.begin = time.perf_counter()

    async def watch(self) -> None:
        """Note the processor's time from the window's begin to its end."""
        while self.begin == float("inf"):
            await asyncio.sleep(0.01)
        before = time.process_time()
        await asyncio.sleep(self.seconds)
        self.processor_seconds = time.process_time() - before


def closed_loop(url: str, work: Work, clients: int, seconds: float) -> Window:
    """``clients`` at a time, for a window of ``seconds``."""
    return asyncio.run(_closed_loop(url, work, clients, Window(seconds)))


def open_loop(url: str, work: Work, rate: float, seconds: float) -> Window:
    """``rate`` requests a second on average, for a window of ``seconds``."""
    return asyncio.run(_open_loop(url, work, rate, Window(seconds)))


async def _closed_loop(url: str, work: Work, clients: int, window: Window) -> Window:
    warm = 0

    async def client(index: int) -> None:
        """Request k of client i is request ``i + k·clients`` of the work."""
        nonlocal warm
        length = max(1, work.output_tokens * (index + 1) // clients)
        first = await connection.ask(work.body(index, length))
        warm += 1
        if first.error is not None:
            window.streams.append(first)
        if warm == clients:
            window.open()
        number = index + clients
        while first.error is None and not window.is_over:
            window.streams.append(await connection.ask(work.body(number)))
            if window.streams[-1].error is not None:
                return
            number += clients

    async with Client(url) as connection:
        await asyncio.gather(window.watch(), *(client(index) for index in range(clients)))
    return window


async def _open_loop(url: str, work: Work, rate: float, window: Window) -> Window:
    chance = random.Random(work.seed)

    async def answer(number: int) -> None:
        window.streams.append(await connection.ask(work.body(number)))
        window.open()

    async with Client(url) as connection:
        tasks = [asyncio.create_task(window.watch())]
        next_one = time.perf_counter()  # of the clock, not of the last: being late makes up for it
        while not window.is_over:
            tasks.append(asyncio.create_task(answer(len(tasks))))
            next_one += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, next_one - time.perf_counter()))
        await asyncio.gather(*tasks)
    return window
