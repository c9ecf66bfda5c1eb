"""Our models are those of transformers: the same logits from the same weights, in fp32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from questtrain.config import ModelConfig, QuantConfig, head_dim
from questtrain.model import Llama
from questtrain.model.huggingface import hf_config, hf_names, model_config_of
from tests.model.family import FAMILY, small_model

LENGTH = 96
"""More than the context that the scaled frequencies are made for."""


def theirs(config: ModelConfig) -> nn.Module:
    """The class that our config.json names, of random weights, norms and biases included."""
    settings = hf_config(config, 512)
    kind = getattr(transformers, settings["architectures"][0])
    torch.manual_seed(0)
    model: nn.Module = kind(kind.config_class(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.05)
    return model


def ours(config: ModelConfig, their_model: nn.Module) -> Llama:
    model = Llama(config, "bf16", QuantConfig()).eval()
    weights = their_model.state_dict()
    names = hf_names(config)
    if config.tie_embeddings:
        weights.pop("lm_head.weight", None)  # which transformers lists a second time
    assert set(names.values()) == set(weights)
    model.load_state_dict({name: weights[other] for name, other in names.items()})
    return model


def tokens(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(97, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", FAMILY.values(), ids=FAMILY)
@torch.no_grad()
def test_the_same_logits(changes: dict[str, Any]) -> None:
    config = small_model(**changes)
    reference = theirs(config)
    model = ours(config, reference)
    logits = reference(tokens()).logits
    assert logits.abs().max() > 1
    torch.testing.assert_close(model(tokens()), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", FAMILY.values(), ids=FAMILY)
def test_their_own_config_says_the_same_model(changes: dict[str, Any]) -> None:
    """As transformers writes it, with ``rope_parameters`` and every default spelled out."""
    config = small_model(**changes)
    settings = hf_config(config, 512)
    kind = getattr(transformers, settings["architectures"][0])
    written = kind.config_class(**settings).to_dict()
    found = model_config_of(written, config.name)
    assert "rope_parameters" in written
    assert (head_dim(found), found.rope_scaling) == (head_dim(config), config.rope_scaling)
    found.nominal_params = config.nominal_params
    assert found == config


@pytest.mark.parametrize("name", ["llama3", "linear"])
@torch.no_grad()
def test_scaled_frequencies_show(name: str) -> None:
    """At this length and with these weights: the comparison above would see them left out."""
    config = small_model(**FAMILY[name])
    model = ours(config, theirs(config))
    logits = model(tokens())
    model.config = replace(config, rope_scaling=None)
    assert (model(tokens()) - logits).abs().max() > 1e-2
