"""Typed configuration: one dataclass a component, gathered in `TrainConfig`.

The YAML files under ``conf/`` hold the values; these classes hold the types, and what each value
is and may be (`questtrain.config.ranges`). The command line converts Hydra's result into them once,
checks it, and no component sees anything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from questtrain.config.names import PathName
from questtrain.config.ranges import COUNT, SEED, SIZE, Choices, Form, Interval, Text

DEVICE = Form(r"auto|cpu|cuda(:\d{1,4})?", "auto, cpu, cuda or cuda:N")
ROTATIONS = Choices(("auto", "none", "hadamard", "hadamard-back"))
SWITCH = Choices(("auto", "true", "false"))
SCALE_DTYPES = ("float32", "float16", "bfloat16")
TARGETS = ("gguf", "onnx", "mlx", "compressed-tensors")
"""Runtimes that a run can be trained for (`questtrain.config.target`)."""
GROUPS = ("model", "data", "method", "optim", "schedule", "logger")
"""Settings that choose a YAML file of ``conf/``."""
MAX_STEPS = 10**9
"""Steps of a run at the most: at a thousand a second they take twelve days."""


@dataclass
class RopeScaling:
    """How rotary frequencies are stretched beyond the length that a model was trained on.

    ``linear`` divides all of them by ``factor``; ``llama3`` those whose wavelength exceeds
    ``original_max_position_embeddings / low_freq_factor``, none below that over
    ``high_freq_factor``, and in between it interpolates. The names are those of Hugging Face, the
    defaults Llama 3.1's.
    """

    rope_type: Annotated[str, Choices(("linear", "llama3")), "which frequencies are divided"] = (
        "llama3"
    )
    factor: Annotated[float, Interval("[1, 1e6]"), "what they are divided by"] = 8.0
    low_freq_factor: Annotated[
        float, Interval("(0, 1e6]"), "llama3: fully divided below so many periods a context"
    ] = 1.0
    high_freq_factor: Annotated[
        float, Interval("(0, 1e6]"), "llama3: as they are above so many periods a context"
    ] = 4.0
    original_max_position_embeddings: Annotated[
        int, Interval(SIZE), "llama3: the context, in tokens, that the frequencies were made for"
    ] = 8192


@dataclass
class ModelConfig:
    """Shape of a Llama (quest.md's table 3). ``None`` means derived, see `questtrain.config`."""

    name: Annotated[str, PathName(), "the size's name, a part of the run's"]
    nominal_params: Annotated[int, Interval("[1, 1e15]"), "what tokens_per_param multiplies"]
    num_layers: Annotated[int, Interval("[1, 10_000]"), "transformer blocks"]
    hidden_size: Annotated[int, Interval("[1, 2^20]"), "width of the residual stream"]
    num_heads: Annotated[int, Interval("[1, 2^20]"), "attention heads"]
    intermediate_size: Annotated[
        int | None, Interval("[1, 2^24]"), "the MLP's; null: 8/3 of hidden_size, in steps of 256"
    ] = None
    vocab_size: Annotated[
        int | None, Interval(SIZE), "rows of the embedding; null: the tokenizer's"
    ] = None
    norm_eps: Annotated[float, Interval("[0, 1]"), "RMSNorm's ε"] = 1e-5
    rope_theta: Annotated[float, Interval("[1, 1e12]"), "base of the rotary frequencies"] = 10_000.0
    init_std: Annotated[float, Interval("[1e-6, 10]"), "standard deviation at the start"] = 0.02
    num_kv_heads: Annotated[
        int | None, Interval("[1, 2^20]"), "heads of keys and values; null: num_heads"
    ] = None
    head_dim: Annotated[
        int | None, Interval("[1, 2^20]"), "a head's width; null: hidden_size / num_heads"
    ] = None
    tie_embeddings: Annotated[bool, "the head's weight is the embedding's"] = False
    qkv_bias: Annotated[bool, "biases of q_proj, k_proj and v_proj (Qwen2's)"] = False
    qk_norm: Annotated[bool, "RMSNorm of each head of Q and K, before rotary (Qwen3's)"] = False
    rope_scaling: Annotated[
        RopeScaling | None, "longer contexts than the rotary frequencies were made for"
    ] = None


@dataclass
class QuantConfig:
    """One method: how an operand is rotated, scaled, rounded, and differentiated.

    An operand is rotated as ``*_rotation`` says: ``hadamard``, and the product is taken in the
    rotated space, ``hadamard-back`` (quantized there, rotated back), or ``none``.
    """

    method: Annotated[str, PathName(), "the method's name, as its file has it"] = "quest"
    rotation: Annotated[str, Choices(("none", "hadamard")), "of what is quantized"] = "hadamard"
    weight_rotation: Annotated[
        str, ROTATIONS, "hadamard-back: rotated, quantized, rotated back; auto: the cheapest"
    ] = "auto"
    activation_rotation: Annotated[str, ROTATIONS, "as weight_rotation"] = "auto"
    hadamard_block: Annotated[int, Interval("[16, 2^30]"), "values rotated together at most"] = 128
    grid: Annotated[
        str, Choices(("centred", "int")), "centred: 2^b levels, none zero; int: 2^b - 1 with zero"
    ] = "centred"
    scale: Annotated[
        str,
        Choices(("gaussian", "learned-step", "learned-clip")),
        "gaussian: α·rms of each row; learned, one a tensor: LSQ's step, PACT's clipping range",
    ] = "gaussian"
    scale_dtype: Annotated[
        str,
        Choices(SCALE_DTYPES),
        "what half a step of a weight's grid is rounded to, as a file stores it",
    ] = "float32"
    group_size: Annotated[
        int | None,
        Interval("[16, 2^20]"),
        "columns of a weight that share a scale, a power of two; null: whole rows",
    ] = None
    target: Annotated[
        str | None,
        Choices(TARGETS),
        "the runtime to train for: sets grid, rotation and scale_dtype as it computes them",
    ] = None
    trust_scale: Annotated[
        float | None,
        Interval("(0, inf]"),
        "trust up to so many half-widths; null: the format's own",
    ] = None
    trust_error: Annotated[
        float | None, Interval("(0, inf]"), "its other form: trust up to an error of so many rms"
    ] = None
    activation_offset: Annotated[bool, "learn an offset of activations too (LSQ+)"] = False
    lr_scale: Annotated[float, Interval("(0, 1e6]"), "learned scales train at so many times lr"] = (
        1.0
    )
    scale_weight_decay: Annotated[float, Interval("[0, 1e6]"), "of learned scales"] = 0.0
    skip: Annotated[
        list[str], Text(empty=True), "layers that stay unquantized: patterns of their names"
    ] = field(default_factory=lambda: ["lm_head"])


@dataclass
class DataConfig:
    """Where the tokens come from; see docs/data.md."""

    name: Annotated[str, PathName(), "the data set's name, a part of the run's"]
    source: Annotated[str, Choices(("stdlib", "text", "c4", "tokens")), "what is read"]
    files: Annotated[list[str], "paths or patterns"] = field(default_factory=list)
    validation_files: Annotated[list[str], "of the validation split"] = field(default_factory=list)
    tokenizer: Annotated[str | None, "a hub name, a folder or a file"] = None
    bos_token: Annotated[str | None, "begins documents; null: what the tokenizer says"] = None
    text_field: Annotated[str, "where a row's text is; a.b is nested"] = "text"
    hub_dataset: Annotated[str | None, "a data set of the hub"] = None
    hub_subset: Annotated[str | None, "its subset"] = None
    validation_fraction: Annotated[
        float, Interval("(0, 1)"), "of the documents, chosen by hash, without validation files"
    ] = 0.02
    vocab_size: Annotated[
        int | None, Interval(SIZE), "to train (stdlib), as padded (tokens), or what info assumes"
    ] = None
    dtype: Annotated[
        str,
        Choices(("auto", "uint16", "uint32", "int32", "int64")),
        "of ids in flat files; auto: read off them",
    ] = "auto"
    max_tokens: Annotated[int | None, Interval(COUNT), "training tokens at the most"] = None
    cache_dir: Annotated[str, "where shards are kept"] = "~/.cache/questtrain"
    num_workers: Annotated[
        int | None, Interval("[1, 4096]"), "processes that prepare shards; null: one a core"
    ] = None


@dataclass
class OptimConfig:
    """AdamW, and what is done to gradients before it."""

    name: Annotated[str, Choices(("adamw",)), "the optimizer"] = "adamw"
    beta1: Annotated[float, Interval("[0, 1)"), "decay of the first moment"] = 0.9
    beta2: Annotated[float, Interval("(0, 1)"), "decay of the second moment"] = 0.95
    eps: Annotated[float, Interval("[1e-30, 1]"), "added to the root of the second moment"] = 1e-8
    weight_decay: Annotated[float, Interval("[0, 1e6]"), "of the blocks' linear layers alone"] = 0.1
    gradient_clip: Annotated[
        float | None,
        Interval("[1e-6, inf]", also=0),
        "largest norm of all gradients together; null, 0: any",
    ] = 1.0


@dataclass
class ScheduleConfig:
    """Learning rate as a fraction of its peak; see `questtrain.train.schedule`."""

    name: Annotated[
        str, Choices(("cosine", "wsd")), "cosine decay, or a plateau and a linear decay (WSD)"
    ] = "cosine"
    warmup_fraction: Annotated[float, Interval("[0, 1]"), "of the steps"] = 0.1
    start_ratio: Annotated[float, Interval("[0, 1]"), "the first learning rate, of the peak"] = 0.01
    final_ratio: Annotated[float, Interval("[0, 1]"), "the last learning rate, of the peak"] = 0.1
    decay_fraction: Annotated[float, Interval("[0, 1]"), "of the steps, at the end (wsd)"] = 0.2


@dataclass
class LoggerConfig:
    """Where metrics go besides ``metrics.jsonl``."""

    name: Annotated[str, Choices(("none", "wandb")), "what metrics are sent to"] = "none"
    project: Annotated[str, Text(longest=128, without="/\\#?%:"), "its project"] = "questtrain"
    entity: Annotated[str | None, "its user or team"] = None
    mode: Annotated[
        str, Choices(("online", "offline", "disabled")), "offline: wandb sync sends it later"
    ] = "online"
    tags: Annotated[list[str], Text(longest=64), "its tags"] = field(default_factory=list)


@dataclass
class LoopConfig:
    """The training loop's own settings."""

    autocast: Annotated[str, Choices(("auto", "bf16", "none")), "auto: bf16 on a GPU"] = "auto"
    save: Annotated[
        str, Choices(("codes", "packed")), "for the backward; packed: fewer bytes, a little slower"
    ] = "codes"
    backward: Annotated[
        str, Choices(("exact", "fp8")), "fp8: faster, by FP8 products of rounded gradients"
    ] = "exact"
    cuda_graph: Annotated[bool, "forward and backward as one graph, where kernels serve"] = True
    recompute: Annotated[
        str,
        Choices(("none", "blocks", "gate_up")),
        "what the backward computes again, to keep less (docs/runs.md); the same bits",
    ] = "none"
    reproducible: Annotated[
        bool, "the same bits by 1, 2, 4 and 8 processes, and after any stop (docs/cluster.md)"
    ] = False
    validation_tokens: Annotated[int, Interval(COUNT), "tokens of a validation"] = 524_288
    keep_checkpoints: Annotated[int, Interval(SIZE), "newest checkpoints that are kept"] = 2
    on_divergence: Annotated[
        str,
        Choices(("stop", "rollback")),
        "at a loss that is NaN or infinite; rollback, also at a spike: to an earlier checkpoint",
    ] = "stop"
    max_rollbacks: Annotated[int, Interval(SIZE), "of a run; at the next trouble it stops"] = 5
    skip_batches: Annotated[
        int,
        Interval("[2, 1e6]"),
        "batches that a rollback skips: up to the one at which trouble was seen",
    ] = 2
    spike_deviations: Annotated[
        float | None,
        Interval("(0, 1e6]"),
        "robust deviations above the median that make a loss a spike; null: none is one",
    ] = 10.0
    spike_window: Annotated[
        int, Interval("[8, 10_000]"), "losses before it that a spike is measured by"
    ] = 128
    diagnose_every: Annotated[
        int | None, Interval(COUNT), "steps between diagnoses; null: none"
    ] = None
    eval_tasks: Annotated[
        list[str],
        Text(),
        "what the model is evaluated on, as in questtrain eval: hellaswag, bpb:FILE, core, …",
    ] = field(default_factory=list)
    eval_tasks_every: Annotated[
        int | None, Interval(COUNT), "steps between these evaluations; null: only at the end"
    ] = None
    eval_tasks_limit: Annotated[
        int | None, Interval(COUNT), "questions or documents of each of them; null: all"
    ] = None
    eval_tasks_datasets: Annotated[
        str | None, "a folder with their data, as datasets=… of questtrain eval"
    ] = None
    eval_tasks_include_path: Annotated[str | None, "a folder with YAML files of more tasks"] = None
    threads: Annotated[int | None, Interval("[1, 4096]"), "CPU threads; null: all cores"] = None
    rank_timeout: Annotated[
        float,
        Interval("[1, 604800]"),
        "seconds that one of several processes may be missing, silent, or stuck in a step",
    ] = 600.0


@dataclass
class TrainConfig:
    """One run, fully resolved."""

    model: Annotated[ModelConfig, "size"]
    data: Annotated[DataConfig, "what is trained on (docs/data.md)"]
    quant: Annotated[QuantConfig, "how it is quantized (docs/methods.md)"]
    optim: Annotated[OptimConfig, "optimizer, with optim.weight_decay, optim.beta1, …"]
    schedule: Annotated[ScheduleConfig, "of the learning rate, with schedule.warmup_fraction, …"]
    logger: Annotated[LoggerConfig, "where metrics go besides metrics.jsonl"]
    train: Annotated[LoopConfig, "the training loop"]
    bits: Annotated[str, "w<W>a<A>; W, A in 1, 1.58, 2..8, fp4, 16 (w4a4, w4s24a4), or bf16"]
    name: Annotated[
        str | None,
        PathName(nested=True),
        "the run's folder below runs_dir; null: made of the settings",
    ]
    runs_dir: Annotated[str, "the folder of runs"]
    seed: Annotated[int, Interval(SEED), "of the initial weights and of the data's order"]
    tokens_per_param: Annotated[
        float, Interval("(0, 1e9]"), "training tokens a parameter of the nominal size"
    ]
    max_steps: Annotated[
        int | None, Interval("[1, 1e9]"), "stop (and end the schedule) after this many steps"
    ]
    batch_size: Annotated[int, Interval("[1, 2^20]"), "sequences a step"]
    micro_batch_size: Annotated[
        int | None, Interval("[1, 2^20]"), "sequences at once; lower it when memory is short"
    ]
    sequence_length: Annotated[int, Interval("[2, 2^20]"), "tokens a sequence"]
    lr: Annotated[float, Interval("(0, inf)"), "peak learning rate (table 3 of the paper)"]
    device: Annotated[str, DEVICE, "what it runs on"]
    compile: Annotated[str, SWITCH, "torch.compile; auto: on GPUs"]
    log_every: Annotated[int, Interval(COUNT), "steps between rows of metrics"]
    eval_every: Annotated[int, Interval(COUNT), "steps between validations"]
    checkpoint_every: Annotated[int, Interval(COUNT), "steps between checkpoints"]
    resume: Annotated[str, Choices(("auto", "never", "must")), "auto goes on where it stopped"]
    gpus: Annotated[
        int | None,
        Interval("[1, 4096]"),
        "of this machine, a process each; null: one process on device",
    ] = None
    init_from: Annotated[
        str | None,
        "begin with a folder's weights: a run's, an export's, Hugging Face's (docs/import.md)",
    ] = None
    switch_at: Annotated[
        float | None,
        Interval("(0, 1)"),
        "the share of the steps that is trained in switch_from, before bits; null: none",
    ] = None
    switch_from: Annotated[
        str | None, "bits up to switch_at; null: bf16 where there is a switch_at"
    ] = None


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
    "train.on_divergence",
    "train.max_rollbacks",
    "train.skip_batches",
    "train.spike_deviations",
    "train.spike_window",
    "train.save",
    "train.recompute",
    "train.cuda_graph",
    "train.diagnose_every",
    "train.eval_tasks",
    "train.eval_tasks_every",
    "train.eval_tasks_limit",
    "train.eval_tasks_datasets",
    "train.eval_tasks_include_path",
    "train.threads",
    "train.rank_timeout",
    "data.cache_dir",
    "data.num_workers",
)
"""Settings that may change when a run goes on: they say how it is run, not what it computes."""


def is_operational(key: str) -> bool:
    """Whether the dotted setting only says how a run is run; see `OPERATIONAL`."""
    return any(key == name or key.startswith(name + ".") for name in OPERATIONAL)
