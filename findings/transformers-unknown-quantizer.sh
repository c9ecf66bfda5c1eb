#!/usr/bin/env bash
# transformers 5.23.0: a checkpoint whose quantization_config names a method that is not registered loads all the same.
# The quantization is skipped under a warning, the tensors of packed weights are "unexpected", and every quantized layer is
# left random: the model answers nonsense, another one at each load. Only where the file has a tensor of the layer's own name
# and another shape is it refused.
# Seen: "packed names alone: random; with a tensor of another shape: RuntimeError".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 2>/dev/null
"$w/venv/bin/python" - "$w/model" <<'P'
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder = pathlib.Path(sys.argv[1])
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).save_pretrained(folder)
config = json.loads((folder / "config.json").read_text())
config["quantization_config"] = {"quant_method": "some_library"}
(folder / "config.json").write_text(json.dumps(config))
tensors = load_file(folder / "model.safetensors")
layers = [name for name in tensors if name.endswith("_proj.weight")]
packed = {f"{name}.codes" if name in layers else name: tensor for name, tensor in tensors.items()}


def logits():
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(torch.arange(8).view(1, -1)).logits


save_file(packed, folder / "model.safetensors", {"format": "pt"})
alone = "the same" if torch.equal(logits(), logits()) else "random"
guards = {name: torch.empty(0) for name in layers}
save_file(packed | guards, folder / "model.safetensors", {"format": "pt"})
try:
    guarded = str(logits().shape)
except RuntimeError as error:
    guarded = type(error).__name__
print(f"packed names alone: {alone}; with a tensor of another shape: {guarded}")
raise SystemExit(0 if (alone, guarded) == ("random", "RuntimeError") else 1)
P
