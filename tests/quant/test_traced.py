"""What traces a converted model sees it whole: torch.compile in one graph, torch.export into a file
that gives the same outputs."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from questtrain.errors import UserError
from questtrain.quant import convert
from tests.integration.models import LanguageModel, loss_of, rows
from tests.quant.test_learned_state import COMPILE_WARNING

METHODS = ["quest", "lsq-plus", "pact"]


def converted(method: str) -> LanguageModel:
    """One block; learned scales have started."""
    torch.manual_seed(0)
    model = LanguageModel(num_layers=1)
    convert(model, "w4a4", method)
    with torch.no_grad():
        model(rows(4))
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings(COMPILE_WARNING)
def test_compiled_in_one_graph(method: str) -> None:
    """The same loss and gradients as without the compiler."""
    model, other = converted(method), converted(method)
    torch.compiler.reset()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    expected, loss = loss_of(model, rows(4)), loss_of(compiled, rows(4))
    torch.testing.assert_close(loss, expected)
    expected.backward()
    loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-4, atol=1e-6, msg=name)


def saved_and_loaded(program: torch.export.ExportedProgram) -> torch.nn.Module:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize("method", METHODS)
def test_exported_for_every_shape(method: str) -> None:
    """The file's program is bit for bit the model, on shapes that it was not traced with."""
    model = converted(method).eval()
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=64)
    program = torch.export.export(
        model, (rows(4),), dynamic_shapes={"tokens": {0: batch, 1: length}}
    )
    loaded = saved_and_loaded(program)
    for tokens in (rows(4), rows(7)[:, :5]):
        assert torch.equal(outputs(loaded, tokens), outputs(model, tokens))


def outputs(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(tokens)
    return y


@pytest.mark.parametrize("method", METHODS[1:])
def test_an_unstarted_scale_is_not_exported(method: str) -> None:
    """Its program would compute with a scale of zero."""
    model = LanguageModel(num_layers=1).eval()
    convert(model, "w4a4", method)
    with pytest.raises(UserError, match=r"call the model once on some data before torch\.export"):
        torch.export.export(model, (rows(2),))
