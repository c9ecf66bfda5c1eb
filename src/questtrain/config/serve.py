"""What `questtrain serve` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from questtrain.config.model_use import AtStep, Packed
from questtrain.config.ranges import SIZE, Interval, Text
from questtrain.config.schema import DEVICE

KEY_VARIABLE = "QUESTTRAIN_API_KEY"
"""Of the environment: the key of clients."""


@dataclass
class ServeConfig:
    """A run, where it is served, and how much it takes on."""

    run: Annotated[
        str, "the run's folder, as `questtrain train` printed it, or a packed export of it"
    ]
    port: Annotated[int, Interval("[0, 65_535]"), "where it listens; 0: any free one"]
    host: Annotated[
        str, Text(longest=255), "the address; beyond loopback (0.0.0.0, …) only with a key"
    ]
    device: Annotated[str, DEVICE, "what it runs on"]
    step: AtStep
    packed: Packed
    context: Annotated[
        int | None, Interval(SIZE), "tokens of prompt and answer; null: the trained length"
    ]
    max_batch_size: Annotated[int, Interval("[1, 4096]"), "answers that are made at a time"]
    max_queue: Annotated[
        int, Interval("[0, 1e6]"), "answers that may wait besides; beyond them it says 429"
    ]
    timeout: Annotated[
        float, Interval("(0, 1e6]"), "seconds that a request may take, its wait included"
    ]
    drain: Annotated[
        float, Interval("[0, 1e6]"), "seconds in which answers are finished after SIGTERM or Ctrl-C"
    ]
    max_request_bytes: Annotated[int, Interval("[1024, 2^30]"), "of a request's body"]
    model_name: Annotated[
        str | None, Text(longest=255), "what clients call the model; null: the run's name"
    ]
    api_key_file: Annotated[
        str | None, "a file that holds the key of clients; null: what QUESTTRAIN_API_KEY says"
    ]
    chat_template: Annotated[
        str | None, "a file in Jinja that writes a chat as text; null: that beside the tokenizer"
    ]
    allowed_hosts: Annotated[
        list[str],
        Text(longest=255),
        "names by which clients may call the server; []: on loopback its own, else any",
    ]
    access_log: Annotated[bool, "a line a request; neither prompts nor keys stand in it"]
