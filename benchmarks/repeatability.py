"""What does not repeat itself on a GPU: the same work on the same numbers, over and over.

    python benchmarks/repeatability.py OUTPUT [--repeats N] [--steps N]

Alone: attention's backward by each of torch's backends, the embedding's. Inside: loss and gradients
of one batch at fixed weights, by parameter; and the losses of fresh runs of the same steps, which
part where something has differed. Each with `torch.use_deterministic_algorithms` off, on but only
warning, and strict.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from questtrain.cli.arguments import parse_arguments, train_config
from questtrain.train.step import TrainingStep

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
HEADS, HEAD_WIDTH, LENGTH, ROWS, VOCAB = 5, 128, 512, 32, 32_000
SETTINGS = (
    "model=30M", "device=cuda", "compile=false", f"batch_size={ROWS}", f"micro_batch_size={ROWS}",
    "max_steps=1000",
)  # fmt: skip


MODES = ("off", "warns", "strict")


@contextmanager
def deterministic(mode: str) -> Iterator[None]:
    torch.use_deterministic_algorithms(mode != "off", warn_only=mode == "warns")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def differing(work: Callable[[], list[Tensor]], repeats: int) -> list[int]:
    """How often each of the tensors that ``work`` gives was not what it was the first time."""
    first = [tensor.clone() for tensor in work()]
    counts = torch.zeros(len(first), dtype=torch.int64, device="cuda")
    for _ in range(repeats):
        found = work()
        counts += torch.stack([(a != b).any() for a, b in zip(first, found, strict=True)])
    return counts.tolist()


def attention(backend: str | None, repeats: int) -> dict[str, Any]:
    """Gradients of Q, K and V in the shapes of a 30M model."""
    torch.manual_seed(0)
    shape = (ROWS, HEADS, LENGTH, HEAD_WIDTH)
    qkv = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    inputs = [tensor.requires_grad_() for tensor in qkv]
    grad = torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    def work() -> list[Tensor]:
        out = F.scaled_dot_product_attention(*inputs, is_causal=True)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad)]

    chosen = list(BACKENDS.values()) if backend is None else [BACKENDS[backend]]
    try:
        with sdpa_kernel(chosen):
            name = type(F.scaled_dot_product_attention(*inputs, is_causal=True).grad_fn).__name__
            counts = differing(work, repeats)
    except RuntimeError as error:
        return {"refused": str(error).splitlines()[0]}
    return {"node": name, **dict(zip(("out", "dq", "dk", "dv"), counts, strict=True))}


def embedding(repeats: int) -> dict[str, int]:
    torch.manual_seed(0)
    weight = torch.randn(VOCAB, HEADS * HEAD_WIDTH, device="cuda", requires_grad=True)
    tokens = torch.randint(0, 300, (ROWS * LENGTH,), device="cuda")
    grad = torch.randn(ROWS * LENGTH, HEADS * HEAD_WIDTH, device="cuda")

    def work() -> list[Tensor]:
        return list(torch.autograd.grad(F.embedding(tokens, weight), [weight], grad))

    return {"weight": differing(work, repeats)[0]}


def new_step(words: list[str]) -> TrainingStep:
    config = train_config(parse_arguments([*SETTINGS, *words]))
    config.model.vocab_size = VOCAB
    return TrainingStep(config, torch.device("cuda"))


def batch(seed: int) -> np.ndarray:
    """Tokens that repeat as text's do: some often, most seldom."""
    ranks = np.random.default_rng(seed).zipf(1.2, (ROWS, LENGTH + 1))
    return np.minimum(ranks, VOCAB - 1).astype(np.int64)


def gradients(words: list[str], repeats: int) -> dict[str, Any]:
    """At fixed weights: which parameters' gradients differ, and how often."""
    step, tokens = new_step(words), batch(0)

    def work() -> list[Tensor]:
        step.optimizer.zero_grad(set_to_none=True)
        loss = step._backward(tokens)
        return [loss, *(weight.grad for weight in step.model.parameters())]

    for _ in range(4):
        work()
    names = ["loss", *(name for name, _ in step.model.named_parameters())]
    counts = dict(zip(names, differing(work, repeats), strict=True))
    return {name: count for name, count in counts.items() if count}


def runs(words: list[str], steps: int, number: int) -> list[int | None]:
    """The first step at which each run's loss is not the first run's; None where all agree."""
    parted, first = [], None
    for _ in range(number):
        step = new_step(words)
        losses = torch.stack([step(batch(seed), 1e-3)[0] for seed in range(steps)]).tolist()
        first = first or losses
        different = (
            i for i, pair in enumerate(zip(first, losses, strict=True)) if len({*pair}) > 1
        )
        parted.append(next(different, None))
    return parted[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }

    def note(name: str, value: Any) -> None:
        found[name] = value
        print(f"{name}: {value}", flush=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")

    for mode in MODES:
        with deterministic(mode):
            for backend in (None, *BACKENDS):
                name = f"attention {backend or 'default'}, {mode}"
                note(name, attention(backend, options.repeats))
            note(f"embedding, {mode}", embedding(options.repeats))
    for bits in ("bf16", "w4a4"):
        for mode in MODES:
            for graph in (True, False):
                words = [f"bits={bits}", f"train.cuda_graph={graph}"]
                name = f"{bits}, {mode}, {'graph' if graph else 'no graph'}"
                with deterministic(mode):
                    note(f"gradients that differ, {name}", gradients(words, options.repeats))
                    note(f"runs part at, {name}", runs(words, options.steps, 3))


if __name__ == "__main__":
    main()
