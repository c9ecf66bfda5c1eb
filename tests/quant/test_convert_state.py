"""The state of a converted model is that of every other: saved whole, loaded strictly, called
functionally, tied."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from questtrain import learned_parameters
from questtrain.quant import QuantLinear, convert
from tests.integration.models import LanguageModel, loss_of, rows

METHODS = ["quest", "lsq", "lsq-plus", "pact"]


def plain() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel()


def converted(method: str) -> nn.Module:
    """Learned scales have started."""
    model = convert(plain(), "w4a4", method)
    model(rows(2))
    return model


def saved(what: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_model_is_saved(method: str) -> None:
    model = converted(method)
    loaded = torch.load(saved(model), weights_only=False)
    assert torch.equal(loaded(rows(3)), model(rows(3)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_is_loaded(method: str, assign: bool) -> None:
    model, other = converted(method), convert(plain(), "w4a4", method)
    other.load_state_dict(torch.load(saved(model.state_dict())), assign=assign)
    assert torch.equal(other(rows(3)), model(rows(3)))
    loss_of(other, rows(3)).backward()
    assert all(scale.grad is not None for scale in learned_parameters(other))


@pytest.mark.parametrize("method", METHODS[1:])
def test_plain_and_converted_states_differ(method: str) -> None:
    """Said, both ways, where scales are learned; not strictly, weights go both ways."""
    model, other = converted(method), plain()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(other.state_dict())
    assert not other.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert not model.load_state_dict(other.state_dict(), strict=False).unexpected_keys


def test_plain_and_quest_states_are_the_same() -> None:
    """A QuEST layer adds nothing to a checkpoint."""
    model, other = converted("quest"), plain()
    other.load_state_dict(model.state_dict())
    model.load_state_dict(other.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_called_functionally(method: str) -> None:
    """With parameters from outside: the same outputs and gradients."""
    model, tokens = converted(method), rows(3)
    outside = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    y = torch.func.functional_call(model, outside, (tokens,))
    assert torch.equal(y, model(tokens))
    y.square().mean().backward()
    model.zero_grad()
    model(tokens).square().mean().backward()
    for name, parameter in model.named_parameters():
        expected = parameter.grad
        assert expected is not None
        assert torch.equal(outside[name].grad, expected), name


class TiedModel(LanguageModel):
    def __init__(self) -> None:
        super().__init__()
        self.output.weight = self.tok_embeddings.weight


@pytest.mark.parametrize("method", METHODS)
def test_a_tied_head(method: str) -> None:
    """It stays tied, whether it is converted or not, and its gradient is the sum of both uses."""
    for skip in (None, ()):
        torch.manual_seed(0)
        model = convert(TiedModel(), "w4a4", method, skip=skip)
        assert isinstance(model.output, QuantLinear) == (skip is not None)
        assert model.output.weight is model.tok_embeddings.weight
        loss_of(model, rows(2)).backward()
        assert model.tok_embeddings.weight.grad is not None
        assert len(set(model.parameters())) == len(list(model.parameters()))


class Experts(nn.Module):
    """A mixture of linear layers, each of which sees the rows of its own, or none."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(count))

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            y[chosen == index] = expert(x[chosen == index])
        return y


@pytest.mark.parametrize("method", METHODS)
def test_experts_without_rows(method: str) -> None:
    """An expert that no row has chosen yet starts later; nothing becomes NaN."""
    model = convert(Experts(), "w4a4", method)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    for highest in (2, 4):
        chosen = torch.arange(8) % highest
        y = model(x, chosen)
        y.square().sum().backward()
        assert y.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        for index, expert in enumerate(model.experts):
            activation = expert.activation_quantizer
            assert all(float(p.detach()) == 0 for p in activation.parameters()) == (
                index >= highest or not learned_parameters(activation)
            )
