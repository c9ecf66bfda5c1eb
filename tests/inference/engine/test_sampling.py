"""Drawing tokens: distributions, their edges, and independence of what else is drawn."""

import pytest
import torch

from questtrain.inference.engine.requests import Sampling
from questtrain.inference.engine.sampling import Rows, draw, how_of, most_likely, tell, uniform

V = 50


def logits(rows=1, seed=0):
    return 2 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def rows_of(count, temperature, top_p, seed=5):
    return Rows(
        torch.full((count,), seed),
        torch.arange(count),
        torch.full((count,), float(temperature)),
        torch.full((count,), float(top_p)),
    )


def splitmix64(seed, number):
    """By Python's integers: the state after ``number + 1`` steps from the hash of a seed."""
    word, gamma = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mixed(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & word
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & word
        return x ^ (x >> 31)

    state = mixed((seed + gamma) & word) + (number + 1) * gamma
    return (mixed(state & word) >> 11) / 2**53


def test_the_generator_is_splitmix64():
    seeds = [0, 1, 2, -1, (1 << 63) - 1, -(1 << 63), 1234567890123456789]
    for number in (0, 1, 77, 1 << 20):
        numbers = torch.full((len(seeds),), number)
        expected = [splitmix64(seed & ((1 << 64) - 1), number) for seed in seeds]
        assert uniform(torch.tensor(seeds), numbers).tolist() == expected
    # The published first outputs of a state that is 0: 16294208416658607535, …
    assert splitmix64(-0x9E3779B97F4A7C15, 0) == (16294208416658607535 >> 11) / 2**53


def test_numbers_of_neighbouring_seeds_and_steps_are_spread_evenly():
    seeds = torch.arange(100).repeat_interleave(1000)
    x = uniform(seeds, torch.arange(1000).repeat(100))
    assert x.min() >= 0
    assert x.max() < 1
    assert torch.histc(x, 20, 0, 1).sub(5000).abs().max() < 5 * 5000**0.5
    x = x.view(100, 1000) - 0.5
    for one, next_one in ((x[:-1], x[1:]), (x[:, :-1], x[:, 1:])):
        assert (one * next_one).mean().abs() < 5 / 12 / one.numel() ** 0.5


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1, 1), (0.7, 1), (0.7, 0.8), (1.3, 0.3), (5, 0.99)]
)
def test_tokens_are_as_frequent_as_the_distribution_says(temperature, top_p):
    """Of 6,000 steps of one seed: each token's share within 5 standard deviations."""
    count = 6_000
    tokens = draw(logits().expand(count, V), rows_of(count, temperature, top_p), "nucleus")
    p, order = (logits()[0] / temperature).double().softmax(0).sort(descending=True)
    p = p.masked_fill(p.cumsum(0) - p >= top_p, 0.0)
    expected = torch.zeros(V, dtype=p.dtype).scatter(0, order, p / p.sum())
    shares = torch.bincount(tokens, minlength=V) / count
    assert not shares[expected == 0].any()
    deviation = (expected * (1 - expected) / count).sqrt()
    assert ((shares - expected).abs() <= 5 * deviation + 1e-9).all()


def test_temperature_zero_is_the_most_likely_token():
    x = logits(40)
    x[3, 7] = x[3, 9] = 100.0  # of equals the first
    for how in ("greedy", "chance", "nucleus"):
        assert torch.equal(draw(x, rows_of(40, 0, 0.5), how), x.argmax(-1))
    assert draw(x, rows_of(40, 0, 1), "greedy")[3] == 7


@pytest.mark.parametrize(("temperature", "top_p"), [(1e-30, 1), (1e-3, 1), (1, 1e-9), (1, 1e-30)])
def test_next_to_nothing_is_the_most_likely_token(temperature, top_p):
    x = logits(40)
    tokens = draw(x, rows_of(40, temperature, top_p), "nucleus")
    assert torch.equal(tokens, x.argmax(-1))


def test_equally_likely_tokens_stand_or_fall_together():
    x = torch.tensor([[3.0, 1.0, 3.0, 3.0, -2.0]]).expand(1000, 5)
    tokens = draw(x, rows_of(1000, 1, 0.4), "nucleus")
    assert torch.bincount(tokens, minlength=5).gt(250).tolist() == [True, False, True, True, False]


def test_large_logits_and_vocabularies():
    x = torch.zeros(2, 200_000)
    x[0, 199_999], x[1, 5] = 1e30, -1e30
    tokens = draw(x, rows_of(2, 1, 0.999), "nucleus")
    assert tokens[0] == 199_999
    assert tokens[1] != 5


def test_a_row_is_drawn_as_it_is_alone():
    """Whatever the others ask for, in whatever order and number."""
    count = 64
    x, generator = logits(count), torch.Generator().manual_seed(1)
    rows = Rows(
        torch.randint(-(1 << 63), (1 << 63) - 1, (count,), generator=generator),
        torch.randint(0, 500, (count,), generator=generator),
        torch.tensor([0.0, 0.5, 1.0, 2.0]).repeat(16),
        torch.tensor([1.0, 0.9, 0.5, 1.0]).repeat_interleave(16),
    )
    tokens = draw(x, rows, "nucleus")
    told = tell(x, tokens, 4)
    for row in range(count):
        one = slice(row, row + 1)
        sampling = Sampling(1, rows.temperature[row].item(), rows.top_p[row].item())
        token = draw(x[one], Rows(*(part[one] for part in rows)), how_of([sampling]))
        assert token == tokens[row]
        for part, whole in zip(tell(x[one], token, 4), told, strict=True):
            assert torch.equal(part, whole[one])
    order = torch.randperm(count, generator=generator)
    assert torch.equal(draw(x[order], Rows(*(p[order] for p in rows)), "nucleus"), tokens[order])


def test_what_is_told_of_tokens():
    x, tokens = logits(6), torch.arange(6)
    logprobs = x.log_softmax(-1)
    assert tell(x, tokens, None)[1:] == (None, None, None)
    told = tell(x, tokens, 0)
    assert torch.equal(told.logprobs, logprobs[range(6), tokens])
    assert told.top_tokens is None
    told = tell(x, tokens, 3)
    assert torch.equal(told.top_tokens, logprobs.topk(3).indices)
    assert torch.equal(told.top_logprobs, logprobs.topk(3).values)
    assert tell(x, tokens, V + 9).top_tokens.shape == (6, V)


def test_of_equally_likely_tokens_the_first_ones_are_told():
    x = torch.tensor([[1.0, 2.0, -0.0, 2.0, 0.0, -torch.inf, 2.0]])
    assert most_likely(x, 7).tolist() == [[1, 3, 6, 0, 2, 4, 5]]


def test_rows_of_free_slots_harm_nothing():
    x = logits(3)
    expected = draw(x, rows_of(3, 1, 0.9), "nucleus")
    x[1] = torch.nan
    tokens = draw(x, rows_of(3, 1, 0.9), "nucleus")
    assert tokens[[0, 2]].tolist() == expected[[0, 2]].tolist()
    assert 0 <= tokens[1] < V


def test_what_is_drawn_with_what():
    greedy, hot = Sampling(1, 0.0, 0.5), Sampling(1, 1.0)
    assert how_of([greedy]) == how_of([]) == "greedy"
    assert how_of([greedy, hot]) == "chance"
    assert how_of([hot, Sampling(1, 0.1, 0.9), greedy]) == "nucleus"
