"""The settings of the benchmarks: what each is and may be; ``conf/bench_*.yaml`` has the defaults.

No torch here: ``questtrain bench layer --help`` shows them, and what a class says of its benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from questtrain.config.ranges import SEED, SIZE, Choices, Interval
from questtrain.config.schema import DEVICE

MILLISECONDS = Interval("(0, 1e9]")
PARTS = Choices(("block", "products", "quantizers"))
PREFILL = Choices(("unpack", "int8"))
LARGE_MODEL = 400_000_000
MICRO_BATCH_TOKENS, MICRO_BATCH_TOKENS_OF_LARGE = 32_768, 16_384
"""Tokens at once on the device, of models up to `LARGE_MODEL` parameters and of larger ones."""


@dataclass
class BenchConfig:
    """What every benchmark has."""

    models: Annotated[list[str], "any of the model sizes, and 7B"]
    rounds: Annotated[int, Interval(SIZE), "samples a case; all cases take turns"]
    device: Annotated[str, DEVICE, "what it runs on"]
    output: Annotated[str | None, "the JSON file; null writes none"]


@dataclass
class LayerConfig(BenchConfig):
    """Each linear layer of a model's block, the four together, and the quantizers, against BF16."""

    tokens: Annotated[list[int], Interval(SIZE), "rows of the activation"]
    bits: Annotated[list[str], "integers of 1 to 7 bits, weights and activations; one or several"]
    parts: Annotated[list[str], PARTS, "what is measured"]
    milliseconds: Annotated[float, MILLISECONDS, "a sample lasts"]


@dataclass
class InferenceConfig(BenchConfig):
    """What benchmarks of whole models in use share."""

    vocab_size: Annotated[int, Interval(SIZE), "of embedding and head"]
    layers: Annotated[int | None, Interval(SIZE), "only so many blocks; null builds all"]


@dataclass
class PrefillConfig(InferenceConfig):
    """Batches of prompts up to the logits of their last tokens: packed Llamas against a BF16 one of
    as many products, all compiled."""

    batch_sizes: Annotated[list[int], Interval(SIZE), "sequences"]
    sequence_length: Annotated[int, Interval(SIZE), "tokens a sequence"]
    bits: Annotated[str, "of the packed model"]
    prefill: Annotated[
        list[str],
        PREFILL,
        "unpack: packed codes, unpacked at each use; int8: INT8 values kept beside them",
    ]
    compile: Annotated[bool, "torch.compile, of all models"]
    milliseconds: Annotated[float, MILLISECONDS, "a sample lasts at least"]


@dataclass
class DecodeConfig(InferenceConfig):
    """One token a sequence a step after a context, as CUDA graphs: packed Llamas against a BF16 one
    of as many products. A model or batch that does not fit into memory is left out."""

    batch_sizes: Annotated[list[int], Interval(SIZE), "sequences"]
    context: Annotated[int, Interval(SIZE), "tokens before the first step"]
    steps: Annotated[int, Interval(SIZE), "a sample lasts"]
    bits: Annotated[list[str], "of the packed models, one or several"]
    compile: Annotated[bool, "of BF16 blocks, and packed ones that no kernel multiplies"]


@dataclass
class ServeLoadConfig(InferenceConfig):
    """Servers of packed models against one of BF16, each alone under the same load of clients that
    stream: tokens a second of all of them, and how long they wait. Weights are random, or a run's
    beside BF16 ones of its shape."""

    run: Annotated[
        str | None, "a run's folder or a packed export, in place of models, bits and vocab_size"
    ]
    bits: Annotated[list[str], "of the packed models, one or several"]
    clients: Annotated[
        list[int], Interval("[1, 4096]"), "at a time; each asks again when it is answered"
    ]
    rate: Annotated[
        float | None,
        Interval("(0, 1e5]"),
        "requests a second, by chance, as a load of its own besides; null: none",
    ]
    prompt_tokens: Annotated[int, Interval("[1, 2^20]"), "of every request, random"]
    output_tokens: Annotated[int, Interval("[1, 2^20]"), "of every answer"]
    temperature: Annotated[float, Interval("[0, 2]"), "0: the most likely token"]
    seconds: Annotated[float, Interval("(0, 3600]"), "a window lasts, after all have warmed up"]
    seed: Annotated[int, Interval(SEED), "of prompts and arrivals"]
    compile: Annotated[
        bool | None, "of BF16 blocks; null: on a GPU (on a CPU it takes minutes a server)"
    ]


@dataclass
class TrainStepConfig(BenchConfig):
    """A whole optimizer step (data, forward, backward, clipping, AdamW): quantized models against
    our own bf16 and against plain, a Llama as anybody would write it in BF16, compiled. A case that
    does not fit into memory is left out."""

    models: Annotated[list[str], "any of the training sizes"]
    cases: Annotated[
        list[str], 'bits, or bits and extra settings in quotes: "w4a4 train.save=packed"'
    ]
    overrides: Annotated[list[str], "extra training settings of all cases"]
    sequence_length: Annotated[int, Interval(SIZE), "tokens a sequence"]
    batch_size: Annotated[int, Interval(SIZE), "sequences a step"]
    micro_batch_tokens: Annotated[
        int | None,
        Interval(SIZE),
        "tokens at once on the device, in whole sequences; null:"
        f" {MICRO_BATCH_TOKENS}, {MICRO_BATCH_TOKENS_OF_LARGE} above {LARGE_MODEL:,} parameters",
    ]
    vocab_size: Annotated[int, Interval(SIZE), "of embedding and head"]
    steps: Annotated[int, Interval(SIZE), "a case is timed for, in all; at least"]
    rounds: Annotated[
        int, Interval(SIZE), "turns that they are divided into; a case and bf16 take turns"
    ]
    compile: Annotated[bool, "torch.compile, on a GPU"]
    profile: Annotated[bool, "a step of each case by kernel, on a GPU"]
