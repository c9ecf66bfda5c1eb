"""The serving engine on a GPU: the same bits whatever else is in the batch, replayed graphs, and a
host that does not wait for the device but for what it tells."""

import random

import pytest
import torch

from questtrain.inference.engine import engine as engine_module
from questtrain.inference.engine.engine import Engine
from questtrain.inference.engine.requests import Request, Sampling
from questtrain.kernels import RowFormat
from questtrain.kernels.dispatch import add_rmsnorm_linear, hadamard_linear, swiglu_linear
from questtrain.kernels.extension import serves
from tests.gpu.kernel_cases import needs_kernels, same_bits
from tests.inference.engine.engines import (
    CONTEXT,
    alone,
    answer,
    byte_tokenizer,
    drive,
    random_prompt,
    random_request,
    trained_model,
)
from tests.kernels.arguments import random_rows, random_weight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
BF16 = torch.bfloat16
SLOTS = 40
GREEDY = Sampling(24, temperature=0, logprobs=2, prompt_logprobs=True)
NUCLEUS = Sampling(24, temperature=1.1, top_p=0.8, seed=99, logprobs=5)
PLAIN = Sampling(24, temperature=0.9, seed=7, logprobs=0)
KINDS = [("w4a4", True), ("w1a1", True), ("w2a2", True), ("w3a3", True), ("w8a8", True)]
OF_VALUES = [("w4a16", True), ("w4a4", False), ("bf16", False)]


@pytest.fixture(scope="module")
def trained(compose, tmp_path_factory):
    """Heads 64 wide, and sizes that the packed products take."""
    tokenizer = byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_heads": 4}

    def made(bits, packed, **changes):
        of_model = shape | changes
        return trained_model(compose("nano"), tokenizer, bits, packed, "cuda", **of_model)

    return made


def others(rng, vocab_size, count):
    """Requests from id 100 on, by the step before which they come, and some that are cancelled."""
    arrivals, cancelled = {}, {}
    for id in range(100, 100 + count):
        at = rng.randrange(16)
        arrivals.setdefault(at, []).append(random_request(rng, id, vocab_size))
        if rng.random() < 0.3:
            cancelled.setdefault(at + rng.randrange(6), []).append(id)
    return arrivals, cancelled


def check_alone_or_among_others(model):
    engine, rng = Engine(model, SLOTS), random.Random(0)
    for sampling in (GREEDY, NUCLEUS, PLAIN):
        request = Request(1, random_prompt(rng, engine.vocab_size, 30), sampling)
        expected = alone(engine, request)
        for at, count in ((0, 1), (3, 6), (9, 25), (9, 90)):
            arrivals, cancelled = others(rng, engine.vocab_size, count)
            arrivals.setdefault(at, []).insert(0, request)
            assert answer(drive(engine, arrivals, cancelled)[1]) == expected


@pytest.mark.parametrize(("bits", "packed"), [*KINDS, *OF_VALUES])
def test_alone_or_among_others(trained, bits, packed):
    """Steps of one slot and of 40, in whichever slot, beside prompts of others."""
    check_alone_or_among_others(trained(bits, packed))


@pytest.mark.parametrize(("bits", "packed"), [("w4a4", True), ("bf16", False)])
def test_prompts_in_pieces(trained, bits, packed, monkeypatch):
    """The first of a prompt by a graph, the others behind a mask."""
    monkeypatch.setattr(engine_module, "PIECE", 16)
    check_alone_or_among_others(trained(bits, packed))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_kv_heads": 2, "qk_norm": True},
        {"num_kv_heads": 1, "qkv_bias": True, "tie_embeddings": True},
        {"num_heads": 2, "hidden_size": 256},
        {"hidden_size": 384, "num_heads": 8},  # heads 48 wide: plain torch
    ],
)
def test_the_family(trained, changes):
    check_alone_or_among_others(trained("w4a4", True, **changes))


@needs_kernels
def test_steps_of_few_slots_are_replayed_by_graphs_of_their_own(trained):
    for bits, packed, sizes in (("w4a4", True, [1, 2, 4, 8, 16, 32, 40]), ("bf16", False, [40])):
        batch = Engine(trained(bits, packed), SLOTS)._batch
        assert {size for size, name in batch._graphs if name == "model"} == set(sizes)
        assert all(graph.is_captured for graph in batch._graphs.values())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize(("bits", "packed"), [("w4a4", True), ("bf16", False)])
def test_the_host_asks_without_waiting(trained, bits, packed):
    """Nothing that a step asks the device for makes the host wait: prompts, steps, what is told of
    tokens, sequences that end and come."""
    engine, rng = Engine(trained(bits, packed), 8), random.Random(4)
    for id in range(8):  # whatever is made on first use
        engine.add(random_request(rng, id, engine.vocab_size))
    while not engine.is_idle:
        engine.step()
    for id in range(30):
        engine.add(random_request(rng, id, engine.vocab_size))
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        while not engine.is_idle:
            engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_memory_is_kept(trained):
    engine, rng, used = Engine(trained("w4a4", True), 8), random.Random(4), []
    for _ in range(4):
        for id in range(30):
            engine.add(random_request(rng, id, engine.vocab_size))
        while not engine.is_idle:
            engine.step()
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated())
    assert used[-1] <= used[1]


def test_logprobs_are_the_models(trained):
    """Against one pass of the whole text, within what bf16 leaves."""
    model = trained("bf16", False)
    engine = Engine(model, 4)
    prompt = random_prompt(random.Random(5), engine.vocab_size, 33)
    request = Request(7, prompt, Sampling(20, 0.8, seed=4, logprobs=0, prompt_logprobs=True))
    _, told, of_prompt, *_ = alone(engine, request)
    every = [*of_prompt, *told]
    assert len(every) <= CONTEXT
    tokens = torch.tensor([[info.token for info in every]], device="cuda")
    assert model.model.embed_tokens.weight.dtype == BF16
    logprobs = model.model(tokens)[0].float().log_softmax(-1)
    expected = logprobs[range(len(every) - 1), tokens[0, 1:]]
    actual = torch.tensor([info.logprob for info in every[1:]], device="cuda")
    assert (actual - expected).abs().mean() < 0.05 * expected.abs().mean()


@needs_kernels
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("width", [256, 2048, 5632])
def test_a_row_of_a_product_is_the_same_bits_among_any_rows(bits, width):
    """Fused and separate quantizers, packed and unpacked weights, whichever tiles: what the
    engine's steps rest on."""
    assert serves("cuda")
    levels, most, columns = 1 << bits, 300, 512
    weight = random_weight(columns, width, levels, "cuda")
    form = RowFormat(levels, 2.5, 128)
    x, residual = (random_rows(most, width, BF16, "cuda", seed) for seed in (1, 2))
    gate_up = random_rows(most, 2 * width, BF16, "cuda", 3)
    norm = 1 + 0.1 * random_rows(1, width, BF16, "cuda", 4).flatten()

    def products(of_rows):
        rows = slice(0, of_rows)
        yield hadamard_linear(x[rows], form, weight)
        yield from add_rmsnorm_linear(x[rows], residual[rows], norm, 1e-5, form, weight)
        yield swiglu_linear(gate_up[rows], form, weight)

    expected = list(products(most))
    for rows in (1, 2, 3, 4, 8, 16, 17, 32, 33, 64, 65, 128, 129, 256):
        for whole, part in zip(expected, products(rows), strict=True):
            assert same_bits(part, whole[:rows]), rows
