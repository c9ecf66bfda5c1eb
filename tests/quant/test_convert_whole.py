"""What `convert` keeps of other people's models: hooks, names, wrappers, and the whole model where
a layer cannot be converted."""

from __future__ import annotations

import ast
import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from questtrain.errors import UserError
from questtrain.quant import QuantLinear, convert
from tests.quant.operands import gaussian
from tests.quant.test_learned_state import COMPILE_WARNING


class LanguageModel(nn.Module):
    """Embedding, two blocks and a head, as everybody names them."""

    def __init__(self, head: str = "lm_head") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 32)
        self.blocks = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])
        self.add_module(head, nn.Linear(32, 50, bias=False))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def quantized(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if isinstance(part, QuantLinear)]


def test_hooks_and_attributes_stay() -> None:
    """Every kind of hook still runs, and the layer is the same object."""
    layer = nn.Linear(32, 32)
    model, heard = nn.Sequential(layer), list[str]()
    layer.register_forward_pre_hook(lambda *_: heard.append("before"))
    layer.register_forward_hook(lambda *_: heard.append("after"))
    layer.register_full_backward_pre_hook(lambda *_: heard.append("backward before"))
    layer.register_full_backward_hook(lambda *_: heard.append("backward after"))
    layer.register_state_dict_pre_hook(lambda *_: heard.append("state"))
    layer.register_load_state_dict_post_hook(lambda *_: heard.append("load"))
    layer.note, layer.training = "mine", False  # type: ignore[assignment]
    layer.register_buffer("counted", torch.ones(3))
    convert(model)
    model(gaussian(2, 32).requires_grad_()).sum().backward()
    model.load_state_dict(model.state_dict())
    assert heard == ["before", "after", "backward before", "backward after", "state", "load"]
    assert model[0] is layer
    assert layer.note == "mine"
    assert not any(part.training for part in layer.modules())
    assert "0.counted" in model.state_dict()


@pytest.mark.parametrize(
    "computed",
    [
        lambda layer: nn.utils.weight_norm(layer),
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    ],
    ids=["weight_norm", "prune"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_hooks_compute_are_quantized(computed: Callable[[nn.Module], Any]) -> None:
    """Layers whose weight a hook makes before every call are converted with it."""
    layer = nn.Linear(32, 16)
    computed(layer)
    names = [name for name, _ in layer.named_parameters()]
    convert(layer, "w4a16", "quest-noht")
    assert [name for name, _ in layer.named_parameters()] == names
    x = gaussian(3, 32)
    y = layer(x)
    expected = nn.functional.linear(x, layer.weight_quantizer(layer.weight), layer.bias)
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("bits", "method", "named"),
    [
        ("w4a4", "quest", "b: a width of 24"),
        ("w4s24a4", "quest-noht", "c: "),
        ("w4a4", "nonsense", "nonsense"),
        ("w9a9", "quest", "w9a9"),
        ("w4s24a4", "lsq", "^bits=w4s24a4: 2:4 sparsity goes with Gaussian scales"),
    ],
)
def test_a_model_is_converted_whole_or_not_at_all(bits: str, method: str, named: str) -> None:
    """The error names the layer, and all are what they were."""
    widths = {"a": 64, "b": 24, "c": 9, "d": 64}
    model = nn.ModuleDict({name: nn.Linear(width, 8) for name, width in widths.items()})
    before = {name: dict(vars(part)) for name, part in model.named_modules()}
    with pytest.raises(UserError, match=named):
        convert(model, bits, method)
    assert quantized(model) == []
    assert {name: dict(vars(part)) for name, part in model.named_modules()} == before


def test_the_error_names_every_layer_with_its_reason() -> None:
    model = nn.ModuleDict({f"low_{i}": nn.Linear(8, 64) for i in range(9)})
    with pytest.raises(UserError, match=r"low_0, low_1, .*low_5 and 3 more: a width of 8 .*skip"):
        convert(model)
    model["q"] = nn.Linear(64, 64)
    convert(model, skip=["low_*"])
    assert quantized(model) == ["q"]


@pytest.mark.parametrize(
    ("skip", "advised"),
    [(None, "['lm_head', 'blocks.0']"), (["lm_head", "up"], "['lm_head', 'up', 'blocks.0']")],
)
def test_the_skip_that_an_error_advises_works(skip: list[str] | None, advised: str) -> None:
    """It keeps what was skipped before, the output head too."""
    model = LanguageModel()
    model.blocks[0] = nn.Linear(20, 32)
    model.up = nn.Linear(32, 32)
    with pytest.raises(UserError) as caught:
        convert(model, skip=skip)
    assert str(caught.value).endswith(f"skip={advised}.")
    convert(model, skip=ast.literal_eval(advised))
    assert "lm_head" not in quantized(model)


@pytest.mark.parametrize("method", ["lsq", "lsq-plus", "pact"])
def test_scales_of_a_frozen_layer_are_frozen(method: str) -> None:
    """As PEFT leaves a model: what is added to a layer that is not trained is not trained."""
    model = LanguageModel()
    model.blocks[0].weight.requires_grad_(False)
    convert(model, method=method)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("blocks.0.weight") for name in trained)
    assert not any(name.startswith("blocks.0.activation") for name in trained)
    assert any(name.startswith("blocks.1.activation_quantizer") for name in trained)


class Adapted(nn.Module):
    """The nesting of a model that PEFT has wrapped."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": partial(torch.compile, backend="eager"),
    "averaged": AveragedModel,
    "parallel": nn.DataParallel,
    "peft": Adapted,
    "checkpointed": checkpoint_wrapper,
    "several": lambda model: Adapted(nn.DataParallel(torch.compile(model, backend="eager"))),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_are_those_without_wrappers(wrapper: str) -> None:
    """The head stays by default, and patterns select what they select in the bare model."""
    for skip, expected in ((None, ["blocks.0", "blocks.1"]), (["blocks.0"], ["blocks.1", "top"])):
        wrapped = WRAPPERS[wrapper](LanguageModel("lm_head" if skip is None else "top"))
        convert(wrapped, skip=skip)
        inner = next(part for part in wrapped.modules() if isinstance(part, LanguageModel))
        assert quantized(inner) == expected


@pytest.mark.filterwarnings(COMPILE_WARNING)
def test_a_compiled_model_runs_its_new_layers() -> None:
    """Also one that has run before: what was compiled is not used any more."""
    model = LanguageModel()
    reference = convert(copy.deepcopy(model), "w2a2")
    tokens = torch.arange(12)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(tokens)
    convert(compiled, "w2a2")
    torch.testing.assert_close(compiled(tokens), reference(tokens))


@pytest.mark.parametrize("head", ["lm_head", "embed_out", "output", "score", "classifier", "own"])
def test_output_heads_stay(head: str, caplog: pytest.LogCaptureFixture) -> None:
    """By their names, or because the model says so; with ``skip=()`` they do not."""
    caplog.set_level(logging.INFO)
    model = LanguageModel(head)
    if head == "own":
        model.get_output_embeddings = lambda: model.own  # type: ignore[assignment]
    convert(model)
    assert quantized(model) == ["blocks.0", "blocks.1"]
    assert head in caplog.text
    convert(model, skip=())
    assert quantized(model) == ["blocks.0", "blocks.1", head]


def test_a_body_that_knows_no_head() -> None:
    """transformers' bodies raise there, or give None."""
    for answer in (None, NotImplementedError("none")):
        model = LanguageModel("inner")

        def give(answer: Exception | None = answer) -> None:
            if answer is not None:
                raise answer

        model.get_output_embeddings = give  # type: ignore[assignment]
        convert(model)
        assert quantized(model) == ["blocks.0", "blocks.1", "inner"]


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("lm_haed", "Did you mean 'lm_head'?"),
        ("block.0", "Did you mean 'blocks.0'?"),
        ("*.q_proj", "(blocks.0, blocks.1, lm_head)"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str, advice: str) -> None:
    model = LanguageModel()
    with pytest.raises(UserError) as caught:
        convert(model, skip=["lm_head", pattern])
    assert repr(pattern) in str(caught.value)
    assert advice in str(caught.value)
    assert quantized(model) == []


@pytest.mark.parametrize(
    ("model", "skip", "reason"),
    [
        (LanguageModel(), ["*"], "skip names all of them"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), None, "no nn.Linear"),
        (nn.ModuleDict({"lm_head": nn.Linear(32, 50)}), None, "lm_head: the output head"),
        (nn.Sequential(nn.LSTM(32, 32)), None, "0: nn.LSTM multiplies with weights of its own"),
    ],
    ids=["skipped", "convolutions", "head", "lstm"],
)
def test_nothing_to_convert_is_an_error(
    model: nn.Module, skip: list[str] | None, reason: str
) -> None:
    with pytest.raises(UserError, match=f"nothing to convert.*{reason}"):
        convert(model, skip=skip)


def encoder(norm_first: bool = False) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        64, 4, 128, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()


@pytest.mark.parametrize("skip", [(), ("layers.0",), ("*.linear1",)])
@pytest.mark.parametrize("lengths", [(5, 5), (3, 5), (1, 2)])
@pytest.mark.filterwarnings("ignore:convert:UserWarning", "ignore:.*nested tensors:UserWarning")
def test_an_encoder_with_padding(skip: tuple[str, ...], lengths: tuple[int, int]) -> None:
    """Inference equals training where there is no padding, whichever layers are converted."""
    model = convert(encoder(), "w4a16", skip=skip)
    x = gaussian(10, 64).view(2, 5, 64)
    padding = torch.arange(5) >= torch.tensor(lengths)[:, None]
    with torch.no_grad():
        inferred = model(x, src_key_padding_mask=padding)
    trained = model.train()(x, src_key_padding_mask=padding)
    torch.testing.assert_close(inferred[~padding], trained[~padding], rtol=1e-4, atol=1e-4)


def test_an_encoder_that_stays_keeps_its_fused_path() -> None:
    """Where nothing of it is converted, nothing of it changes."""
    model = nn.ModuleDict({"encoder": encoder(), "up": nn.Linear(64, 64)})
    convert(model, skip=["encoder"])
    assert model["encoder"].use_nested_tensor
    assert model["encoder"].layers[0].activation_relu_or_gelu
    assert quantized(model) == ["up"]


def test_a_replaced_forward_is_named() -> None:
    """accelerate puts a function of its own in front of the layer's: it would call the old one."""
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].forward = model[1].forward
    with pytest.warns(UserWarning, match="1: its forward was replaced"):
        convert(model)
    assert quantized(model) == ["0"]


def test_parametrized_layers_are_named() -> None:
    model = nn.Sequential(nn.Linear(32, 32), parametrizations.orthogonal(nn.Linear(32, 32)))
    with pytest.warns(UserWarning, match="remove_parametrizations"):
        convert(model)
    assert quantized(model) == ["0"]
