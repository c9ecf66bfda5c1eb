"""What `/metrics` tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from questtrain.inference.engine.answers import Times

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_SECONDS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter(
            "questtrain_requests",
            "Requests of the API, by what came of them",
            ["endpoint", "outcome"],
            registry=own,
        )
        self.prompt_tokens = Counter(
            "questtrain_prompt_tokens", "Tokens of prompts that were taken", registry=own
        )
        self.generated_tokens = Counter(
            "questtrain_generated_tokens", "Tokens that the model gave", registry=own
        )
        self.running = Gauge(
            "questtrain_running", "Answers that the engine is making", registry=own
        )
        self.waiting = Gauge("questtrain_waiting", "Answers that wait for a slot", registry=own)
        self.first_token = Histogram(
            "questtrain_time_to_first_token_seconds",
            "From a request's arrival to its first token",
            buckets=SECONDS,
            registry=own,
        )
        self.token = Histogram(
            "questtrain_time_per_token_seconds",
            "Between the tokens of an answer after its first, their mean",
            buckets=TOKEN_SECONDS,
            registry=own,
        )
        self.queue = Histogram(
            "questtrain_queue_seconds",
            "From a request's arrival to the step that began its answer",
            buckets=SECONDS,
            registry=own,
        )

    def note_answer(self, times: Times) -> None:
        """An answer has ended, or was given up."""
        self.generated_tokens.inc(times.generated)
        if times.admitted:
            self.queue.observe(times.admitted - times.asked)
        if times.first:
            self.first_token.observe(times.first - times.asked)
        if times.generated > 1:
            self.token.observe((times.last - times.first) / (times.generated - 1))

    def text(self) -> bytes:
        """The page, in Prometheus' format."""
        return generate_latest(self.registry)
