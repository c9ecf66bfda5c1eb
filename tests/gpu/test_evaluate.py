"""Evaluations on a GPU: scores in bf16, and texts decoded by replayed graphs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from questtrain.inference.evaluate.generation import Decoding, Generator
from questtrain.inference.evaluate.score import Scorer, logits_fp32
from questtrain.inference.load import TrainedModel, for_use
from questtrain.model import Llama, PackedLlama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTH, VOCAB = 32, 96


@pytest.fixture(params=[True, False], ids=["packed", "values"])
def trained(request, compose) -> TrainedModel:
    """W4A4, packed in bf16 or as values in fp32; its texts are numbers."""
    model = {"num_layers": 2, "hidden_size": 128, "num_heads": 2, "vocab_size": VOCAB}
    config = compose("30M", bits="w4a4", sequence_length=LENGTH, model=model)
    llama = Llama(config.model, config.bits, config.quant)
    llama.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        llama.lm_head.weight.mul_(20)
    tokenizer = SimpleNamespace(bos_id=-1, decode=lambda ids: " ".join(map(str, ids)))
    return TrainedModel(for_use(llama, torch.device("cuda"), request.param), tokenizer, config, 0)


def test_scores_are_those_of_the_model_alone(trained):
    """Rows of other lengths beside it change bf16's products by rounding alone."""
    pairs = [([0, *range(1, n)], [5, n, 7][: 1 + n % 3]) for n in range(1, 25)]
    scores = Scorer(trained, 256).score(pairs)
    for (context, continuation), score in zip(pairs, scores, strict=True):
        inputs = torch.tensor([[*context, *continuation][:-1]], device="cuda")
        with torch.inference_mode():
            x_TD = trained.model.hidden(inputs)[0]
            logprobs = logits_fp32(trained.model, x_TD).log_softmax(-1)[-len(continuation) :]
        expected = float(logprobs[range(len(continuation)), continuation].sum())
        assert score.logprob == pytest.approx(expected, abs=5e-2)


def test_logits_are_made_in_fp32(trained):
    """Of bf16 factors: within fp32's rounding of their exact product."""
    with torch.inference_mode():
        x = trained.model.hidden(torch.arange(9, device="cuda").unsqueeze(0))[0]
        logits = logits_fp32(trained.model, x)
        exact = trained.model.norm(x).double() @ trained.model.lm_head.weight.double().t()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, rtol=1e-4, atol=1e-4)


def test_answers_are_what_the_model_finds_likely(trained):
    """Each token of a greedy answer is the likeliest after the text before it, or as likely within
    rounding, when the model reads that text alone and at once. In bf16 a rounding can move an
    activation by a whole level: on a CPU that made up to 0.1 of the largest logit."""
    tolerance = 0.2 if isinstance(trained.model, PackedLlama) else 0.02
    prompts = [[*range(1, n)] for n in (3, 8, 5, 15)]
    texts = Generator(trained).continuations(prompts, Decoding(16))
    for prompt, text in zip(prompts, texts, strict=True):
        answer = [int(number) for number in text.split()]
        assert len(answer) == 16
        read = torch.tensor([[*prompt, *answer[:-1]]], device="cuda")
        with torch.inference_mode():
            logits = trained.model(read)[0, -16:].float()
        chosen = logits[range(16), answer]
        assert (logits.amax(-1) - chosen).max() <= tolerance * logits.abs().max()
