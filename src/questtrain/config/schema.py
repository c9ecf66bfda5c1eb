"""Typed configuration: one dataclass a component, gathered in `TrainConfig`.

The YAML files under ``conf/`` hold the values; these classes hold the types, and what each value
may be (`questtrain.config.ranges`). The command line converts Hydra's result into them once, checks
it, and no component sees anything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from questtrain.config.names import PathName
from questtrain.config.ranges import COUNT, SEED, SIZE, Choices, Form, Interval, Text

DEVICE = Form(r"auto|cpu|cuda(:\d{1,4})?", "auto, cpu, cuda or cuda:N")
ROTATIONS = Choices(("auto", "none", "hadamard", "hadamard-back"))
SWITCH = Choices(("auto", "true", "false"))
MAX_STEPS = 10**9
"""Steps of a run at the most: at a thousand a second they take twelve days."""


@dataclass
class ModelConfig:
    """Shape of a Llama (quest.md's table 3). ``None`` means derived, see `questtrain.config`."""

    name: Annotated[str, PathName()]
    nominal_params: Annotated[int, Interval("[1, 1e15]")]
    num_layers: Annotated[int, Interval("[1, 10_000]")]
    hidden_size: Annotated[int, Interval("[1, 2^20]")]
    num_heads: Annotated[int, Interval("[1, 2^20]")]
    intermediate_size: Annotated[int | None, Interval("[1, 2^24]")] = None
    vocab_size: Annotated[int | None, Interval(SIZE)] = None
    norm_eps: Annotated[float, Interval("[0, 1]")] = 1e-5
    rope_theta: Annotated[float, Interval("[1, 1e12]")] = 10_000.0
    init_std: Annotated[float, Interval("[1e-6, 10]")] = 0.02


@dataclass
class QuantConfig:
    """One method: how an operand is rotated, scaled, rounded, and differentiated.

    ``*_rotation`` is ``hadamard`` (the product is taken in the rotated space), ``hadamard-back``
    (quantized there, rotated back), ``none``, or ``auto``: the cheapest valid pair.

    ``grid`` is ``centred`` (2^b levels, none of them zero) or ``int`` (2^b - 1 levels with zero).
    ``scale`` is ``gaussian`` (α·rms of each row), ``learned-step`` (LSQ) or ``learned-clip``
    (PACT); the learned ones, one a tensor, train at ``lr_scale`` times the learning rate with
    ``scale_weight_decay``, and ``activation_offset`` (LSQ+) learns an offset for activations too.

    With a Gaussian scale, trust is given as ``trust_scale`` (t: up to t times the grid's
    half-width) or ``trust_error`` (T: an error of at most T row rms); with neither, the published
    default of the format.
    """

    method: Annotated[str, PathName()] = "quest"
    rotation: Annotated[str, Choices(("none", "hadamard"))] = "hadamard"
    weight_rotation: Annotated[str, ROTATIONS] = "auto"
    activation_rotation: Annotated[str, ROTATIONS] = "auto"
    hadamard_block: Annotated[int, Interval("[16, 2^30]")] = 128
    grid: Annotated[str, Choices(("centred", "int"))] = "centred"
    scale: Annotated[str, Choices(("gaussian", "learned-step", "learned-clip"))] = "gaussian"
    trust_scale: Annotated[float | None, Interval("(0, inf]")] = None
    trust_error: Annotated[float | None, Interval("(0, inf]")] = None
    activation_offset: bool = False
    lr_scale: Annotated[float, Interval("(0, 1e6]")] = 1.0
    scale_weight_decay: Annotated[float, Interval("[0, 1e6]")] = 0.0
    skip: Annotated[list[str], Text(empty=True)] = field(default_factory=lambda: ["lm_head"])


@dataclass
class DataConfig:
    """Where the tokens come from; see docs/data.md.

    ``vocab_size`` is the size to train for stdlib's own tokenizer, the padded size for ``tokens``,
    and elsewhere what `questtrain info` assumes until the tokenizer is loaded. ``dtype`` is the
    width of the ids in files of ``tokens``; ``bos_token`` the token that begins documents, None
    what the tokenizer says.
    """

    name: Annotated[str, PathName()]
    source: Annotated[str, Choices(("stdlib", "text", "c4", "tokens"))]
    files: list[str] = field(default_factory=list)
    validation_files: list[str] = field(default_factory=list)
    tokenizer: str | None = None
    bos_token: str | None = None
    text_field: str = "text"
    hub_dataset: str | None = None
    hub_subset: str | None = None
    validation_fraction: Annotated[float, Interval("(0, 1)")] = 0.02
    vocab_size: Annotated[int | None, Interval(SIZE)] = None
    dtype: Annotated[str, Choices(("auto", "uint16", "uint32", "int32", "int64"))] = "auto"
    max_tokens: Annotated[int | None, Interval(COUNT)] = None
    cache_dir: str = "~/.cache/questtrain"
    num_workers: Annotated[int | None, Interval("[1, 4096]")] = None


@dataclass
class OptimConfig:
    """AdamW; weight decay applies to the matrices of the blocks' linear layers only.

    ``gradient_clip`` is the largest norm of all gradients together; None or 0 clips nothing.
    """

    name: Annotated[str, Choices(("adamw",))] = "adamw"
    beta1: Annotated[float, Interval("[0, 1)")] = 0.9
    beta2: Annotated[float, Interval("(0, 1)")] = 0.95
    eps: Annotated[float, Interval("[1e-30, 1]")] = 1e-8
    weight_decay: Annotated[float, Interval("[0, 1e6]")] = 0.1
    gradient_clip: Annotated[float | None, Interval("[1e-6, inf]", also=0)] = 1.0


@dataclass
class ScheduleConfig:
    """Learning rate as a fraction of its peak; see `questtrain.train.schedule`."""

    name: Annotated[str, Choices(("cosine", "wsd"))] = "cosine"
    warmup_fraction: Annotated[float, Interval("[0, 1]")] = 0.1
    start_ratio: Annotated[float, Interval("[0, 1]")] = 0.01
    final_ratio: Annotated[float, Interval("[0, 1]")] = 0.1
    decay_fraction: Annotated[float, Interval("[0, 1]")] = 0.2


@dataclass
class LoggerConfig:
    """Where metrics go besides ``metrics.jsonl``."""

    name: Annotated[str, Choices(("none", "wandb"))] = "none"
    project: Annotated[str, Text(longest=128, without="/\\#?%:")] = "questtrain"
    entity: str | None = None
    mode: Annotated[str, Choices(("online", "offline", "disabled"))] = "online"
    tags: Annotated[list[str], Text(longest=64)] = field(default_factory=list)


@dataclass
class LoopConfig:
    """The training loop's own settings.

    ``save`` is what the backward keeps of quantized operands: ``codes`` (a byte a value) or
    ``packed`` (their few bits: less memory, a little slower, the same numbers). ``backward`` is
    ``exact``, or ``fp8``: the quantized layers' two products in FP8, with rounded gradients.
    ``cuda_graph``: forward and backward are one graph, where kernels serve a run of one process.
    """

    autocast: Annotated[str, Choices(("auto", "bf16", "none"))] = "auto"
    save: Annotated[str, Choices(("codes", "packed"))] = "codes"
    backward: Annotated[str, Choices(("exact", "fp8"))] = "exact"
    cuda_graph: bool = True
    validation_tokens: Annotated[int, Interval(COUNT)] = 524_288
    keep_checkpoints: Annotated[int, Interval(SIZE)] = 2
    diagnose_every: Annotated[int | None, Interval(COUNT)] = None
    threads: Annotated[int | None, Interval("[1, 4096]")] = None


@dataclass
class TrainConfig:
    """One run, fully resolved."""

    model: ModelConfig
    data: DataConfig
    quant: QuantConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    logger: LoggerConfig
    train: LoopConfig
    bits: str
    name: Annotated[str | None, PathName(nested=True)]
    runs_dir: str
    seed: Annotated[int, Interval(SEED)]
    tokens_per_param: Annotated[float, Interval("(0, 1e9]")]
    max_steps: Annotated[int | None, Interval("[1, 1e9]")]
    batch_size: Annotated[int, Interval("[1, 2^20]")]
    micro_batch_size: Annotated[int | None, Interval("[1, 2^20]")]
    sequence_length: Annotated[int, Interval("[2, 2^20]")]
    lr: Annotated[float, Interval("(0, inf)")]
    device: Annotated[str, DEVICE]
    compile: Annotated[str, SWITCH]
    log_every: Annotated[int, Interval(COUNT)]
    eval_every: Annotated[int, Interval(COUNT)]
    checkpoint_every: Annotated[int, Interval(COUNT)]
    resume: Annotated[str, Choices(("auto", "never", "must"))]
    gpus: Annotated[int | None, Interval("[1, 4096]")] = None


OPERATIONAL = (
    "device",
    "gpus",
    "compile",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "resume",
    "runs_dir",
    "micro_batch_size",
    "logger",
    "train.keep_checkpoints",
    "train.save",
    "train.cuda_graph",
    "train.diagnose_every",
    "train.threads",
    "data.cache_dir",
    "data.num_workers",
)
"""Settings that may change when a run goes on: they say how it is run, not what it computes."""


def is_operational(key: str) -> bool:
    """Whether the dotted setting only says how a run is run; see `OPERATIONAL`."""
    return any(key == name or key.startswith(name + ".") for name in OPERATIONAL)
