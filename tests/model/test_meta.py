"""Models without numbers."""

from __future__ import annotations

import subprocess
import sys

import torch

from questtrain.config import ModelConfig, QuantConfig
from questtrain.model import Llama
from questtrain.model.meta import without_numbers

SMALL = ("small", 1, 1, 64, 2, 128, 64)


def test_shapes_and_names_are_the_models():
    config = ModelConfig(*SMALL)
    with without_numbers():
        bare = Llama(config, "w4a4", QuantConfig()).state_dict()
    whole = Llama(config, "w4a4", QuantConfig()).state_dict()
    assert {name: each.shape for name, each in bare.items()} == {
        name: each.shape for name, each in whole.items()
    }
    assert all(each.device == torch.device("meta") for each in bare.values())


def test_the_compiler_of_torch_is_not_imported():
    probe = (
        "import sys; from questtrain.config import ModelConfig, QuantConfig;"
        "from questtrain.model import Llama; from questtrain.model.meta import without_numbers\n"
        f"with without_numbers(): Llama(ModelConfig(*{SMALL}), 'w4a4', QuantConfig())\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
