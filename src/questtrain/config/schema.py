"""Typed configuration: one dataclass a component, gathered in `TrainConfig`.

The YAML files under ``conf/`` hold the values; these classes hold the types. The command line
converts Hydra's result into them once, and no component sees anything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ModelConfig:
    """Shape of a Llama (quest.md's table 3). ``None`` means derived, see `questtrain.config`."""

    name: str
    nominal_params: int
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int | None = None
    vocab_size: int | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    init_std: float = 0.02


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

    method: str = "quest"
    rotation: str = "hadamard"
    weight_rotation: str = "auto"
    activation_rotation: str = "auto"
    hadamard_block: int = 128
    grid: str = "centred"
    scale: str = "gaussian"
    trust_scale: float | None = None
    trust_error: float | None = None
    activation_offset: bool = False
    lr_scale: float = 1.0
    scale_weight_decay: float = 0.0
    skip: list[str] = field(default_factory=lambda: ["lm_head"])


@dataclass
class DataConfig:
    """Where the tokens come from; see docs/data.md.

    ``vocab_size`` is the size to train for stdlib's own tokenizer, the padded size for ``tokens``,
    and elsewhere what `questtrain info` assumes until the tokenizer is loaded. ``dtype`` is the
    width of the ids in files of ``tokens``; ``bos_token`` the token that begins documents, None
    what the tokenizer says.
    """

    name: str
    source: str
    files: list[str] = field(default_factory=list)
    validation_files: list[str] = field(default_factory=list)
    tokenizer: str | None = None
    bos_token: str | None = None
    text_field: str = "text"
    hub_dataset: str | None = None
    hub_subset: str | None = None
    validation_fraction: float = 0.02
    vocab_size: int | None = None
    dtype: str = "auto"
    max_tokens: int | None = None
    cache_dir: str = "~/.cache/questtrain"
    num_workers: int | None = None


@dataclass
class OptimConfig:
    """AdamW; weight decay applies to the matrices of the blocks' linear layers only."""

    name: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    gradient_clip: float = 1.0


@dataclass
class ScheduleConfig:
    """Learning rate as a fraction of its peak; see `questtrain.train.schedule`."""

    name: str = "cosine"
    warmup_fraction: float = 0.1
    start_ratio: float = 0.01
    final_ratio: float = 0.1
    decay_fraction: float = 0.2


@dataclass
class LoggerConfig:
    """Where metrics go besides ``metrics.jsonl``."""

    name: str = "none"
    project: str = "questtrain"
    entity: str | None = None
    mode: str = "online"
    tags: list[str] = field(default_factory=list)


@dataclass
class LoopConfig:
    """The training loop's own settings.

    ``save`` is what the backward keeps of quantized operands: ``codes`` (a byte a value) or
    ``packed`` (their few bits: less memory, a little slower, the same numbers). ``backward`` is
    ``exact``, or ``fp8``: the quantized layers' two products in FP8, with rounded gradients.
    ``cuda_graph``: forward and backward are one graph, where kernels serve a run of one process.
    """

    autocast: str = "auto"
    save: str = "codes"
    backward: str = "exact"
    cuda_graph: bool = True
    validation_tokens: int = 524_288
    keep_checkpoints: int = 2
    diagnose_every: int | None = None
    threads: int | None = None


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
    name: str | None
    runs_dir: str
    seed: int
    tokens_per_param: float
    max_steps: int | None
    batch_size: int
    micro_batch_size: int | None
    sequence_length: int
    lr: float
    device: str
    compile: str
    log_every: int
    eval_every: int
    checkpoint_every: int
    resume: str


OPERATIONAL = (
    "device",
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
