"""Decoding: the cache and the `Decoder` give the logits of the full forward pass, compiled too."""

import pytest
import torch

from questtrain.bench.model.dense import stacked
from questtrain.config import ModelConfig
from questtrain.inference.decode import Decoder
from questtrain.inference.pack import pack
from questtrain.model import Llama, PackedLlama, StaticCache
from questtrain.quant import convert
from questtrain.quant.method import method_config
from tests.model.family import FAMILY, small_model
from tests.model.losses import build_of

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def llama(bits="w4a4", layers=3):
    config = ModelConfig("small", 1, layers, 128, 2, vocab_size=97)
    model = Llama(config, bits, method_config("quest"))
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(False)


def member(name, bits):
    """Of the Llama family."""
    return build_of(small_model(**FAMILY[name]), bits).eval().requires_grad_(False)


def tokens(batch=2, length=17):
    return torch.randint(97, (batch, length), generator=torch.Generator().manual_seed(1))


def decoded(decoder, t, prompt):
    """The logits ``[B, T-prompt+1, V]`` after a prompt, and after each token that follows it."""
    steps = [decoder.prefill(t[:, :prompt])]
    steps += [decoder.step(t[:, i]).clone() for i in range(prompt, t.shape[1])]
    return torch.stack(steps, 1)


@pytest.mark.parametrize("bits", ["bf16", "w4a4", "w2a16"])
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 4, 2], [12], [1, 11]])
def test_incremental_decoding_equals_the_full_forward(bits, chunks):
    """Token by token or in chunks. In float64, so that the order of a sum flips no code."""
    model, t = llama(bits).double(), tokens(2, sum(chunks))
    cache = StaticCache(model.config, 2, 12, model.embed_tokens.weight)
    pieces = [model(piece, cache) for piece in t.split(chunks, dim=1)]
    assert int(cache.position) == sum(chunks)
    torch.testing.assert_close(torch.cat(pieces, 1), model(t), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["bf16", "w4a4", "packed", "packed w4a16", "converted"])
@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_equals_the_full_forward(kind, batch):
    """Prefill, steps by `decode_attention`, and a second, shorter prefill in the same cache."""
    model = llama({"packed": "w4a4", "packed w4a16": "w4a16", "converted": "bf16"}.get(kind, kind))
    if kind.startswith("packed"):
        model = pack(model)
    elif kind == "converted":
        model = convert(model, bits="w4a16", skip=())
    t = tokens(batch)
    expected, decoder = model(t), Decoder(model, batch, 17)
    for prompt in (9, 1):
        logits = decoded(decoder, t, prompt)
        torch.testing.assert_close(logits, expected[:, prompt - 1 :], **CLOSE)


@pytest.mark.parametrize("name", FAMILY)
def test_the_familys_incremental_decoding_equals_the_full_forward(name):
    model, t = member(name, "w4a4").double(), tokens(2, 12)
    cache = StaticCache(model.config, 2, 12, model.embed_tokens.weight)
    pieces = [model(piece, cache) for piece in t.split([5, 1, 4, 2], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(t), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", ["bf16", "packed", "packed w2a16"])
@pytest.mark.parametrize("name", FAMILY)
def test_the_familys_decoding_equals_the_full_forward(name, form):
    """Packed, they give the logits of their values, too."""
    model = member(name, {"packed": "w2a2", "packed w2a16": "w2a16"}.get(form, form))
    expected, t = model(tokens()), tokens()
    if form.startswith("packed"):
        model = pack(model)
        assert isinstance(model, PackedLlama) == (form == "packed")
    assert_most_positions_close(model(t), expected)
    decoder = Decoder(model, 2, 17)
    for prompt in (9, 1):
        assert_most_positions_close(decoded(decoder, t, prompt), expected[:, prompt - 1 :])


def assert_most_positions_close(logits, expected):
    """But for codes that lie on a rounding border and fall the other way, which a position or two
    and what follows them may see."""
    close = torch.isclose(logits, expected, **CLOSE).all(-1)
    assert close.float().mean() > 0.7


@pytest.mark.parametrize("bits", ["bf16", "w4a4"])
def test_decoding_in_bf16_loses_no_more_than_the_full_forward_does(bits):
    """Both round, and move some activations over rounding borders, but not the same ones."""
    model = llama(bits)
    exact = model(tokens())[:, 3:]
    rounded = model.bfloat16() if bits == "bf16" else pack(model, torch.bfloat16)
    expected = rounded(tokens())[:, 3:]
    logits = decoded(Decoder(rounded, 2, 17), tokens(), 4)
    assert (logits - exact).norm() < 1.2 * (expected - exact).norm()


@pytest.mark.parametrize("form", ["llama", "packed", "stacked"])
def test_logits_of_the_last_positions(form):
    model, t = llama("bf16" if form == "stacked" else "w4a4"), tokens()
    model = {"llama": lambda m: m, "packed": pack, "stacked": stacked}[form](model)
    whole = model(t)
    assert torch.equal(model(t, logits_to_keep=0), whole)
    for count in (1, 5, 17):
        kept = model(t, logits_to_keep=count)
        torch.testing.assert_close(kept, whole[:, -count:], **CLOSE)


def test_a_full_cache_refuses_more():
    decoder = Decoder(llama(), 2, 5)
    decoder.prefill(tokens(2, 4))
    decoder.step(tokens()[:, 0])
    with pytest.raises(ValueError, match="6 tokens do not fit into a cache of 5"):
        decoder.step(tokens()[:, 0])
    with pytest.raises(ValueError, match="6 tokens do not fit into a cache of 5"):
        decoder.prefill(tokens(2, 6))


def test_a_model_that_has_no_cache_is_refused():
    with pytest.raises(TypeError, match="takes a Llama or a PackedLlama, not Linear"):
        Decoder(torch.nn.Linear(2, 2), 1, 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("is_packed", [False, True])
def test_one_compiled_block_serves_all_layers(is_packed):
    """A packed model's first block has another form: nothing waits to be added to its input."""
    torch.compiler.reset()
    model, graphs = llama(layers=6), []
    if is_packed:
        model = pack(model)
    expected = model(tokens())

    def counted(graph, _):
        graphs.append(graph)
        return graph

    for block in model.layers:
        block.compile(fullgraph=True, dynamic=False, backend=counted)
    decoder = Decoder(model, 2, 17)
    with torch.compiler.set_stance("force_eager"):
        decoder.prefill(tokens()[:, :9])
    logits = torch.stack([decoder.step(tokens()[:, i]) for i in range(9, 17)], 1)
    torch.testing.assert_close(logits, expected[:, 9:], **CLOSE)
    assert len(graphs) == 1 + is_packed
