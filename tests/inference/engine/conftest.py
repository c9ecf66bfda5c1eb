"""The models that the engine's tests share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from questtrain.inference.load import TrainedModel
from tests.inference.engine.engines import byte_tokenizer, trained_model


@pytest.fixture(scope="session")
def trained(compose: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainedModel]:
    """``trained(bits, packed)``: a model ready to be served."""
    tokenizer = byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return cache(
        lambda bits, packed, **shape: trained_model(
            compose("nano"), tokenizer, bits, packed, **shape
        )
    )
