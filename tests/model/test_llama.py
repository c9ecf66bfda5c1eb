"""The Llama: initialisation, what its quantized layers are, and attention's order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from questtrain.config import QuantConfig
from questtrain.kernels.ops.rotary import rotate
from questtrain.model import Llama
from questtrain.model.rotary import rotary_angles
from questtrain.quant import QuantLinear

if TYPE_CHECKING:
    from tests.conftest import Compose

VOCAB = 97
BITS = ("bf16", "w1a1", "w1.58a1.58", "w2a2", "w4a4", "w8a8", "w2a16", "w16a4")


def build(compose: Compose, bits: str = "w4a4", size: str = "nano", **model: int) -> Llama:
    config = compose(size, model={"num_layers": 2, "vocab_size": VOCAB, **model})
    llama = Llama(config.model, bits, config.quant)
    llama.init_weights(torch.Generator().manual_seed(0))
    return llama


def token_ids(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_init_statistics(compose: Compose) -> None:
    """Embedding, head and projections ~ N(0, 0.02); o_proj and down_proj are smaller by
    √(2·layers); norms are 1. Bounds: five standard errors of a sample's mean and deviation."""
    layers = 3
    for name, weight in build(compose, num_layers=layers).named_parameters():
        if "norm" in name:
            assert (weight == 1).all(), name
            continue
        output = "o_proj" in name or "down_proj" in name
        std = 0.02 / math.sqrt(2 * layers) if output else 0.02
        n = weight.numel()
        assert abs(weight.mean()) < 5 * std / math.sqrt(n), name
        assert abs(weight.std() / std - 1) < 5 / math.sqrt(2 * n), name


def test_init_is_a_function_of_the_seed(compose: Compose) -> None:
    """The same generator gives the same weights, another seed others."""
    first, second = build(compose), build(compose)
    other = build(compose)
    other.init_weights(torch.Generator().manual_seed(1))
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)


@pytest.mark.parametrize("bits", BITS)
def test_forward_and_backward_in_every_format(compose: Compose, bits: str) -> None:
    """At initialisation the loss is near ln(vocabulary): logits of variance 0.02²·hidden add half
    of it, 0.026. Every parameter gets a finite gradient that is not zero."""
    model = build(compose, bits)
    tokens = token_ids(4, 33)
    logits = model(tokens[:, :-1])
    assert logits.shape == (4, 32, VOCAB)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    assert loss.item() == pytest.approx(math.log(VOCAB) + 0.026, abs=0.1)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("bits", ["bf16", "w4a4"])
def test_a_few_steps_learn_a_sequence(compose: Compose, bits: str) -> None:
    """Trained on one batch, the loss falls well under where it began."""
    model = build(compose, bits)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = token_ids(2, 17)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        logits = model(tokens[:, :-1]).flatten(0, 1)
        loss = F.cross_entropy(logits, tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("bits", ["bf16", "w4a4"])
def test_causality(compose: Compose, bits: str) -> None:
    """Changing token t changes the logits from t on and none before."""
    model = build(compose, bits)
    tokens = token_ids(1, 16)
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert ((before != after).any(-1)[0, 9:]).all()


def test_sequences_of_a_batch_do_not_mix(compose: Compose) -> None:
    """A batch gives each sequence the logits that it gets alone."""
    model = build(compose).double()
    tokens = token_ids(3, 8)
    with torch.no_grad():
        together = model(tokens)
        alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("past", [0, 7])
def test_rotary_is_a_rotation_of_complex_pairs(compose: Compose, past: int) -> None:
    """Position p turns pair j (entries j and j + K/2) by the angle p·θ^(-2j/K)."""
    model = build(compose)
    x = torch.randn(2, 3, 5, 64, generator=torch.Generator().manual_seed(0))
    angles = rotary_angles(model.config, torch.arange(past, past + 5))
    rotated = rotate(x, *angles).double().numpy()
    pairs = x.double().numpy()
    pairs = pairs[..., :32] + 1j * pairs[..., 32:]
    frequency = 10_000.0 ** (-2 * np.arange(32) / 64)
    turned = pairs * np.exp(1j * np.outer(np.arange(past, past + 5), frequency))
    np.testing.assert_allclose(rotated[..., :32], turned.real, atol=1e-5)
    np.testing.assert_allclose(rotated[..., 32:], turned.imag, atol=1e-5)


def test_the_blocks_seven_layers_are_quantized(compose: Compose) -> None:
    """Q, K, V, O, gate, up and down are; embedding, norms and LM head never."""
    model = build(compose, "w3a5")
    quantized = {
        name: str(module.bits)
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear)
    }
    attention = [f"attention.{name}_proj" for name in "qkvo"]
    mlp = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert quantized == {f"layers.{i}.{part}": "w3a5" for i in (0, 1) for part in attention + mlp}
    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight is not model.embed_tokens.weight


@pytest.mark.parametrize(
    ("skip", "kept"),
    [(["layers.0.*"], 7), (["*.down_proj", "*.o_proj"], 4), (["layers.?.attention.*"], 8), ([], 0)],
)
def test_skip_patterns_keep_layers_unquantized(
    compose: Compose, skip: list[str], kept: int
) -> None:
    """A skipped layer is the same module with 16-bit operands; weights keep their names."""
    config = compose("nano", model={"num_layers": 2, "vocab_size": VOCAB}, quant={"skip": skip})
    model = Llama(config.model, "w4a4", config.quant)
    layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
    assert len(layers) == 14
    assert sum(not layer.bits.quantized for layer in layers) == kept
    assert model.state_dict().keys() == build(compose).state_dict().keys()


def test_formats_share_one_checkpoint(compose: Compose) -> None:
    """State is the format-independent parameters: a BF16 checkpoint loads into a W4A4 model."""
    source, target = build(compose, "bf16"), build(compose, "w4a4")
    target.init_weights(torch.Generator().manual_seed(9))
    target.load_state_dict(source.state_dict())
    assert set(source.state_dict()) == {name for name, _ in source.named_parameters()}
    tokens = token_ids(1, 8)
    with torch.no_grad():
        assert not torch.equal(source(tokens), target(tokens))


def test_the_vocabulary_must_be_known(compose: Compose) -> None:
    """A model without a vocabulary size cannot be built."""
    with pytest.raises(ValueError, match=r"model\.vocab_size"):
        Llama(compose("nano").model, "w4a4", QuantConfig())
