"""The `Decoder` on a GPU: replayed graphs give what plain steps give, for everything it decodes."""

from types import SimpleNamespace

import pytest
import torch

from questtrain.bench.model.decode import compile_blocks
from questtrain.bench.model.dense import stacked
from questtrain.config import ModelConfig
from questtrain.inference.decode import Decoder
from questtrain.inference.generate import generate_tokens
from questtrain.inference.pack import pack
from questtrain.kernels.extension import serves
from questtrain.model import Llama, StaticCache
from questtrain.quant.method import method_config
from tests.model.family import FAMILY, small_model
from tests.model.losses import build_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
BF16, FP32 = torch.bfloat16, torch.float32
TOLERANCE = {BF16: {"rtol": 2e-2, "atol": 2e-2}, FP32: {"rtol": 1e-4, "atol": 1e-5}}
PROMPT, LENGTH = 9, 30


def llama(bits, dtype=FP32, hidden=256, heads=2, method="quest", device="cuda"):
    config = ModelConfig("small", 1, 3, hidden, heads, vocab_size=97)
    model = Llama(config, bits, method_config(method))
    model.init_weights(torch.Generator().manual_seed(0))
    return model.to(device, dtype).eval().requires_grad_(False)


def tokens(batch, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(97, (batch, LENGTH), generator=generator).cuda()


@torch.no_grad()
def plain(model, t):
    """Prefill and steps without a graph: ``[B, T, V]``."""
    cache = StaticCache(model.config, t.shape[0], LENGTH, model.embed_tokens.weight)
    parts = t.split([PROMPT] + [1] * (LENGTH - PROMPT), dim=1)
    return torch.stack([model(part, cache)[:, -1] for part in parts], 1)


def decoded(decoder, t):
    steps = [decoder.prefill(t[:, :PROMPT])]
    steps += [decoder.step(t[:, i]).clone() for i in range(PROMPT, LENGTH)]
    return torch.stack(steps, 1)


def check(model, dtype, batch):
    """Two sequences one after the other in one `Decoder`: the second finds the graph there."""
    decoder = Decoder(model, batch, LENGTH)
    for seed in (1, 2):
        t = tokens(batch, seed)
        torch.testing.assert_close(decoded(decoder, t), plain(model, t), **TOLERANCE[dtype])


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("bits", ["w1a1", "w2a2", "w4a4", "w4s24a4"])
def test_packed_models(bits, batch):
    if not serves("cuda"):
        pytest.skip("needs the CUDA kernels")
    check(pack(llama(bits), BF16), BF16, batch)


@pytest.mark.parametrize("bits", ["w4a16", "fp4", "w8a8", "w3s24a16"])
def test_packed_weights_that_are_multiplied_as_values(bits):
    check(pack(llama(bits), BF16), BF16, 1)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize(
    ("bits", "method"),
    [("bf16", "quest"), ("w4a4", "quest"), ("w16a4", "quest"), ("w4a4", "lsq"), ("w4a4", "pact")],
)
def test_models_that_are_not_packed(bits, method, dtype):
    """Learned scales are initialised by the first prefill, as they would be in training."""
    check(llama(bits, dtype, method=method), dtype, 2)


def test_heads_of_a_width_that_the_kernel_does_not_have():
    check(llama("bf16", hidden=96), FP32, 2)


@pytest.mark.parametrize("form", ["packed", "packed w2a16", "bf16"])
@pytest.mark.parametrize("name", FAMILY)
def test_the_llama_family(name, form):
    """Fewer heads of keys and values, other widths, tied embeddings, biases, norms of heads."""
    if not serves("cuda"):
        pytest.skip("needs the CUDA kernels")
    bits = {"packed": "w4a4", "packed w2a16": "w2a16"}.get(form, form)
    model = build_of(small_model(**FAMILY[name]), bits).cuda().eval().requires_grad_(False)
    check(model if form == "bf16" else pack(model, BF16), FP32 if form == "bf16" else BF16, 2)


@pytest.mark.parametrize("batch", [1, 4])
def test_compiled_blocks(batch):
    """bf16 rounds in other places where operations are fused."""
    torch.compiler.reset()
    model = stacked(llama("bf16", BF16))
    expected = plain(model, tokens(batch))
    compile_blocks(model)
    decoder = Decoder(model, batch, LENGTH)
    torch.testing.assert_close(decoded(decoder, tokens(batch)), expected, rtol=5e-2, atol=5e-2)


def test_short_answers_capture_nothing():
    decoder = Decoder(llama("bf16"), 1, LENGTH)
    t = tokens(1)
    decoder.prefill(t[:, :PROMPT])
    decoder.step(t[:, PROMPT])
    assert not decoder._graph.is_captured
    decoder.step(t[:, PROMPT + 1])
    assert decoder._graph.is_captured


@pytest.mark.parametrize("prompt", [[5], list(range(40))])
def test_generated_tokens_are_the_cpus(prompt):
    """Greedy, in fp32 and past the trained length, where the context is prefilled anew."""

    def generated(device):
        trained = SimpleNamespace(
            model=llama("bf16", device=device),
            tokenizer=SimpleNamespace(bos_id=-1),
            config=SimpleNamespace(sequence_length=16),
        )
        return list(generate_tokens(trained, prompt, 60, 0.0, 1.0, 0))

    assert generated("cuda") == generated("cpu")
