"""A tiny model with a real tokenizer, and what it says by the shortest way there is."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from questtrain.data import Tokenizer, load_tokenizer
from questtrain.inference.load import TrainedModel, for_use
from questtrain.model import Llama

LENGTH = 48


def tokenizer_of_settings(corpus: list[str]) -> Tokenizer:
    """The tokenizer that the settings of the test corpus name."""
    (setting,) = (word for word in corpus if word.startswith("data.tokenizer="))
    return load_tokenizer(Path(setting.partition("=")[2]))


def opinionated_model(compose, tokenizer: Tokenizer, length: int = LENGTH) -> TrainedModel:
    """An unquantized model of ``length`` tokens whose weights make some tokens likely."""
    model = {"num_layers": 2, "hidden_size": 64, "num_heads": 2}
    model["vocab_size"] = tokenizer.vocab_size
    config = compose("30M", bits="bf16", sequence_length=length, model=model)
    llama = Llama(config.model, config.bits, config.quant)
    llama.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        llama.lm_head.weight.mul_(60)
    return TrainedModel(for_use(llama, torch.device("cpu"), False), tokenizer, config, 0)


class Plain:
    """The model in fp64, called on one sequence at a time."""

    def __init__(self, trained: TrainedModel) -> None:
        self.model = copy.deepcopy(trained.model).double()
        self.tokenizer = trained.tokenizer

    def ids(self, text: str) -> list[int]:
        """BOS and the tokens of a text."""
        return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]

    def logprobs(self, ids: list[int]) -> tuple[list[float], list[bool]]:
        """Of each token but the first, given all before it: its log-probability, and whether it is
        the likeliest."""
        with torch.no_grad():
            table = self.model(torch.tensor([ids]))[0, :-1].log_softmax(-1)
        following = torch.tensor(ids[1:])
        own = table.gather(1, following[:, None])[:, 0]
        return own.tolist(), (table.argmax(-1) == following).tolist()
