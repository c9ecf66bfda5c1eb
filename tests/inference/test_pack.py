"""Packed models: the trained model's outputs from a quarter of the bytes."""

import pytest
import torch
from torch import nn

import questtrain
from questtrain.config import ModelConfig
from questtrain.errors import UserError
from questtrain.inference.pack import block_weight_bytes, pack
from questtrain.model import Llama, PackedLlama
from questtrain.quant import PackedLinear
from questtrain.quant.method import method_config

SMALL = ModelConfig("small", 1, 2, 128, 2, vocab_size=512)


def llama(bits="w4a4", method="quest", **changes):
    torch.manual_seed(0)
    quant = method_config(method)
    for key, value in changes.items():
        setattr(quant, key, value)
    model = Llama(SMALL, bits, quant)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(False)


def tokens(batch=2, length=17):
    return torch.randint(0, 512, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", ["w1a1", "w2a2", "w4a4", "w4s24a4"])
def test_a_packed_llama_is_the_llama(bits):
    """Up to fp32 rounding, which could move a value over a rounding border, but here does not."""
    model = llama(bits)
    packed = pack(model)
    assert isinstance(packed, PackedLlama)
    torch.testing.assert_close(packed(tokens()), model(tokens()), rtol=1e-4, atol=1e-5)
    assert torch.equal(pack(model, prefill="int8")(tokens(5, 20)), packed(tokens(5, 20)))


@pytest.mark.parametrize(("bits", "changes"), [("w4a16", {}), ("w4a4", {"skip": ["*.0.mlp.*"]})])
def test_what_does_not_fuse_is_replaced_layer_by_layer(bits, changes):
    model = llama(bits, **changes)
    packed = pack(model)
    assert isinstance(packed, Llama)
    torch.testing.assert_close(packed(tokens()), model(tokens()), rtol=1e-4, atol=1e-5)
    assert block_weight_bytes(packed) < block_weight_bytes(model)


def test_any_model_with_quantized_layers():
    model = questtrain.convert(nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)))
    packed, x = pack(model), torch.randn(4, 128)
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)
    assert isinstance(model[0], questtrain.QuantLinear)
    with pytest.raises(UserError, match="nothing to pack"):
        pack(nn.Linear(8, 8))
    with pytest.raises(UserError, match="Did you mean 'int8'"):
        pack(model, prefill="int9")


def test_800m_in_a_quarter_of_bf16s_bytes():
    """One of its 16 blocks, which are alike."""
    block = ModelConfig("800M", 800_000_000, 1, 2048, 16, vocab_size=16)
    model = Llama(block, "w4a4", method_config("quest"))
    packed = block_weight_bytes(pack(model))
    assert packed <= 0.27 * block_weight_bytes(model.bfloat16())


def test_state_dict_round_trip():
    packed = pack(llama())
    other = llama()
    other.init_weights(torch.Generator().manual_seed(5))
    restored = pack(other)
    restored.load_state_dict(packed.state_dict())
    assert torch.equal(restored(tokens()), packed(tokens()))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_forward_compiles_whole():
    packed = pack(llama())
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens()), packed(tokens()), rtol=1e-4, atol=1e-5)


def test_bf16_loses_no_more_than_the_unpacked_model_does():
    """Both move some activations over rounding borders; packed, the products are exact."""
    exact = llama()(tokens())
    packed = pack(llama(), torch.bfloat16)(tokens()).float()
    plain = llama().bfloat16()(tokens()).float()
    assert (packed - exact).norm() < 1.2 * (plain - exact).norm()


def test_a_quantized_head_is_packed_with_the_blocks():
    model = questtrain.convert(llama(), bits="w4a4", skip=())
    packed = pack(model)
    assert isinstance(packed, PackedLlama)
    assert isinstance(packed.lm_head, PackedLinear)
    torch.testing.assert_close(packed(tokens()), model(tokens()), rtol=1e-4, atol=1e-5)
