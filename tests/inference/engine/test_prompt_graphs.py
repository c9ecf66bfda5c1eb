"""Prompts filled up to a length that has a graph: what comes behind them changes nothing."""

from itertools import pairwise

import pytest
import torch

from questtrain.inference.engine.prompt_graphs import LENGTHS, PromptGraphs
from questtrain.model import SlottedCache


def cached(cache):
    return torch.stack([torch.stack(cache.keys), torch.stack(cache.values)])


@pytest.mark.parametrize("count", [1, 15, 16, 17, 60, 64])
@torch.no_grad()
def test_a_prompt_is_read_as_without_filling(trained, count):
    """A second one in another slot, too; what is another's is left alone. In fp32, so that sums of
    other lengths may differ by roundings."""
    model = trained("bf16", False).model
    generator = torch.Generator().manual_seed(count)
    cache, expected = (SlottedCache(model.config, 3, 64, torch.ones(1)) for _ in range(2))
    prompts = PromptGraphs(model, cache, 64, None)
    for cache_of in (cache, expected):
        for tensor in (*cache_of.keys, *cache_of.values):
            tensor.fill_(7.0)
    for slot in (2, 0):
        tokens = torch.randint(97, (count,), generator=generator)
        hidden = prompts.read(slot, tokens.tolist())
        wanted = model.hidden(tokens.unsqueeze(0), expected.filling(slot, 0))[0]
        torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=1e-4)
    found, wanted = (cached(x)[:, :, :, :, :count] for x in (cache, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (cached(cache)[:, :, 1] == 7).all()


def test_lengths_ascend_and_leave_little_to_fill():
    assert list(LENGTHS) == sorted(LENGTHS)
    assert all(length % 16 == 0 for length in LENGTHS)
    assert all(after <= 2 * length for length, after in pairwise(LENGTHS))
