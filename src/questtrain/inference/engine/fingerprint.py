"""What a seed's answer depends on besides the request, as two hashes: the weights as they are
served, and all else (docs/serve.md, "Same request, same answer").

The weights are hashed as they multiply, not as they lie in files: a run and a packed export of it
that holds the same numbers are one model to a client.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from questtrain.data import Tokenizer
from questtrain.device import cpu_name, device_name
from questtrain.kernels.dispatch import serves_cpu
from questtrain.kernels.extension import serves
from questtrain.process import available_cores
from questtrain.store.files import sha256_of_hashes
from questtrain.version import __version__

MOST_THREADS = 4
"""Tensors that are hashed at a time: each is copied to the host where it is on a GPU."""


def weights_sha256(model: nn.Module) -> str:
    """Of everything that the model computes with, by its names: codes and scales where it is
    packed, values where it is not."""
    state = dict(sorted(model.state_dict().items()))
    with ThreadPoolExecutor(min(MOST_THREADS, available_cores())) as pool:
        return sha256_of_hashes(dict(zip(state, pool.map(_sha256, state.values()), strict=True)))


def _sha256(tensor: Tensor) -> str:
    """Of its dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def setup_sha256(tokenizer: Tokenizer, device: torch.device, max_batch_size: int) -> str:
    """Of what decides, with the same weights, which bits come out: how a text becomes tokens, the
    kind of device, the software, how many rows a step has, the threads of a CPU."""
    on_cpu = device.type == "cpu"
    setup = {
        "tokenizer": [tokenizer.sha256, tokenizer.bos_id],
        "device": cpu_name() if on_cpu else device_name(device),
        "threads": torch.get_num_threads() if on_cpu else None,
        "kernels": serves(device) or serves_cpu(device),
        "questtrain": __version__,
        "torch": str(torch.__version__),
        "max_batch_size": max_batch_size,
    }
    return hashlib.sha256(json.dumps(setup).encode()).hexdigest()
