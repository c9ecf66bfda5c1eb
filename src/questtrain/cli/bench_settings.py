"""The settings of ``questtrain bench``'s commands, and the pages that ``--help`` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from questtrain.config.ranges import SIZE, Choices, Interval
from questtrain.config.schema import DEVICE

HELP = """usage: questtrain bench layer|prefill|decode|train|tune [key=value …] [--json]

Speed against BF16 on this machine, with the device's own limits measured in the same run.

  layer     linear layers, quantization included, and the quantizers alone (figure 6)
  prefill   a whole model over many tokens (figure 7)
  decode    a whole model, a token a step
  train     a whole optimizer step
  tune      the INT8 kernel's tile configurations, for the table that the library picks from

Each writes a JSON file as it goes, and a picture beside it; --json prints the JSON.
`questtrain bench layer --help` lists the settings of layer.
"""

SHARED = """  rounds         samples a case; all cases take turns   [8]
  device         auto, cpu, cuda, cuda:N   [auto]; on a CPU the plain torch reference runs
  output         the JSON file; null writes none   [{output}]
"""

LAYER_HELP = f"""usage: questtrain bench layer [key=value …] [--json]

Each linear layer of a model's block, the four together, and the quantizers, against BF16.

  models         any of the model sizes, and 7B   [[800M, 1600M, 7B]]
  tokens         rows of the activation   [[1, 16, 64, 128, 512, 2048, 8192, 16384, 32768]]
  bits           integers of 1 to 7 bits, weights and activations   [w4a4]
  parts          of block, products, quantizers   [all]
  milliseconds   a sample lasts   [2.0]
{SHARED.format(output="bench-layer.json")}
  questtrain bench layer models=[800M,7B] output=benchmarks/results/layer.json
  questtrain bench layer models=nano tokens=[1,16] device=cpu
"""

PREFILL_HELP = f"""usage: questtrain bench prefill [key=value …] [--json]

Batches of prompts up to the logits of their last tokens: packed Llamas against a BF16 one of as
many products, all compiled.

  models           any of the model sizes, and 7B   [800M]
  batch_sizes      sequences   [[1, 2, 4, 8, 16, 32, 64]]
  sequence_length  [512]
  bits             [w4a4]
  prefill          unpack (packed codes, unpacked at each use), int8 (INT8 values kept beside
                   them), or both   [[unpack, int8]]
  layers           only so many blocks   [all]
  vocab_size       [32000]
  compile          [true]
  milliseconds     a sample lasts at least   [20.0]
{SHARED.format(output="bench-prefill.json")}"""

DECODE_HELP = f"""usage: questtrain bench decode [key=value …] [--json]

One token a sequence a step after a context, as CUDA graphs: packed Llamas against a BF16 one of as
many products. A model or batch that does not fit into memory is left out.

  models         any of the model sizes, and 7B   [[800M, 7B]]
  batch_sizes    sequences   [[1, 4, 16]]
  context        tokens before the first step   [512]
  steps          a sample lasts   [32]
  bits           one or several   [[w4a4]]
  layers         only so many blocks   [all]
  vocab_size     [32000]
  compile        the BF16 blocks, and packed ones that no kernel multiplies   [true]
{SHARED.format(output="bench-decode.json")}"""

TRAIN_HELP = """usage: questtrain bench train [key=value …] [--json]

A whole optimizer step (data, forward, backward, clipping, AdamW): quantized models against our own
bf16 and against plain, a Llama as anybody would write it in BF16, compiled. A case that does not
fit into memory is left out.

  models              any of the training sizes   [[30M, 100M, 800M]]
  cases               bits, or bits and extra settings in quotes: "w4a4 train.save=packed"
                      [[w4a4, w1a1, w2a2, w8a8]]
  overrides           extra training settings of all cases   [[]]
  sequence_length     tokens a sequence   [512]
  batch_size          sequences a step   [64]
  micro_batch_tokens  tokens at once on the device, in whole sequences
                      [32768; 16384 for models of more than 400M parameters]
  vocab_size          [32000]
  steps               a case is timed for, in all; at least   [50]
  rounds              turns that they are divided into; a case and bf16 take turns   [5]
  compile             on a GPU   [true]
  profile             a step of each case by kernel, on a GPU   [true]
  device              auto, cpu, cuda, cuda:N   [auto]; on a CPU the plain torch reference runs
  output              the JSON file; null writes none   [bench-train.json]

  questtrain bench train models=800M 'cases=[w4a4,"w4a4 train.save=packed"]'
  questtrain bench train models=nano steps=4 batch_size=4 sequence_length=64 vocab_size=256
"""

TUNE_HELP = f"""usage: questtrain bench tune [key=value …] [--json]

Measures the INT8 kernel's tile configurations and writes the table that the library picks from;
`make kernels` then builds it in.

  models         the shapes of these models   [[30M, 100M, 800M, 1600M, 7B]]
  tokens         rows of the activation   [[16, 64, 128, …, 32768]]
  table          the table's file   [csrc/gemm/tiles_sm90.inc]
  milliseconds   a sample lasts   [0.8]
{SHARED.format(output="bench-tune.json")}"""

PREFILL = ("unpack", "int8")
LARGE_MODEL = 400_000_000
MICRO_BATCH_TOKENS, MICRO_BATCH_TOKENS_OF_LARGE = 32_768, 16_384
"""Tokens at once on the device, of models up to `LARGE_MODEL` parameters and of larger ones."""
PARTS = ("block", "products", "quantizers")
MILLISECONDS = Interval("(0, 1e9]")
"""A sample lasts."""


@dataclass
class LayerConfig:
    models: list[str]
    tokens: Annotated[list[int], Interval(SIZE)]
    bits: str
    parts: Annotated[list[str], Choices(PARTS)]
    rounds: Annotated[int, Interval(SIZE)]
    milliseconds: Annotated[float, MILLISECONDS]
    device: Annotated[str, DEVICE]
    output: str | None


@dataclass
class PrefillConfig:
    models: list[str]
    batch_sizes: Annotated[list[int], Interval(SIZE)]
    sequence_length: Annotated[int, Interval(SIZE)]
    bits: str
    prefill: Annotated[list[str], Choices(PREFILL)]
    vocab_size: Annotated[int, Interval(SIZE)]
    layers: Annotated[int | None, Interval(SIZE)]
    compile: bool
    rounds: Annotated[int, Interval(SIZE)]
    milliseconds: Annotated[float, MILLISECONDS]
    device: Annotated[str, DEVICE]
    output: str | None


@dataclass
class DecodeConfig:
    models: list[str]
    batch_sizes: Annotated[list[int], Interval(SIZE)]
    context: Annotated[int, Interval(SIZE)]
    steps: Annotated[int, Interval(SIZE)]
    bits: list[str]
    vocab_size: Annotated[int, Interval(SIZE)]
    layers: Annotated[int | None, Interval(SIZE)]
    compile: bool
    rounds: Annotated[int, Interval(SIZE)]
    device: Annotated[str, DEVICE]
    output: str | None


@dataclass
class TrainStepConfig:
    models: list[str]
    cases: list[str]
    overrides: list[str]
    sequence_length: Annotated[int, Interval(SIZE)]
    batch_size: Annotated[int, Interval(SIZE)]
    micro_batch_tokens: Annotated[int | None, Interval(SIZE)]
    vocab_size: Annotated[int, Interval(SIZE)]
    steps: Annotated[int, Interval(SIZE)]
    rounds: Annotated[int, Interval(SIZE)]
    compile: bool
    profile: bool
    device: Annotated[str, DEVICE]
    output: str | None


@dataclass
class TuneConfig:
    models: list[str]
    tokens: Annotated[list[int], Interval(SIZE)]
    rounds: Annotated[int, Interval(SIZE)]
    milliseconds: Annotated[float, MILLISECONDS]
    device: Annotated[str, DEVICE]
    table: str
    output: str | None


AnyConfig = LayerConfig | PrefillConfig | DecodeConfig | TrainStepConfig | TuneConfig
