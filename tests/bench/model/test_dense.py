"""The rival of decoding is the Llama that it is made from."""

import torch

from questtrain.bench.model.decode import compile_blocks, measure_steps
from questtrain.bench.model.dense import stacked
from questtrain.bench.model.random_models import stacked_model
from questtrain.config import ModelConfig, QuantConfig
from questtrain.inference import Decoder
from questtrain.model import Llama

SMALL = ModelConfig("small", 1, 4, 64, 2, vocab_size=50)


def llama():
    model = Llama(SMALL, "bf16", QuantConfig())
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(False)


def tokens(batch=3, length=9):
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(1))


def test_stacked_products_are_the_same_llama():
    model, t = llama(), tokens()
    rival = stacked(model)
    torch.testing.assert_close(rival(t), model(t), rtol=1e-5, atol=1e-6)
    decoder = Decoder(rival, 3, 9)
    steps = [decoder.prefill(t[:, :4]), *(decoder.step(t[:, i]) for i in range(4, 9))]
    torch.testing.assert_close(torch.stack(steps, 1), model(t)[:, 3:], rtol=1e-5, atol=1e-6)


def test_the_model_that_is_measured():
    model = stacked_model(SMALL, torch.device("cpu"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    shapes = [tuple(p.shape) for p in model.layers[0].parameters() if p.dim() == 2]
    assert shapes == [(192, 64), (64, 64), (512, 64), (64, 256)]


def test_compiled_blocks_are_two_graphs_and_no_prefill(monkeypatch):
    """The first block's, to whose input nothing is added, and one that serves all others."""
    torch.compiler.reset()
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph

    model = stacked(llama())
    compile = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **kw: compile(self, backend=counted, **kw)
    )
    compile_blocks(model)
    timings = measure_steps({"bf16": model}, tokens(), steps=2, rounds=2)
    assert timings["bf16"].median > 0
    assert len(graphs) == 2
