"""The Llama family on a GPU: the fused model's loss and gradients are the plain model's."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.kernel_cases import needs_kernels, whatever_training_warns_of
from tests.model.family import FAMILY, small_model
from tests.model.losses import batch, build_of, fuse, grads_of, plain_loss, worst_error

pytestmark = [pytest.mark.gpu, needs_kernels, *whatever_training_warns_of]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("name", FAMILY)
def test_same_loss_and_gradients(name: str, dtype: torch.dtype, bound: float) -> None:
    """Without quantization, so that no rounding border is near: what differs is bf16's rounding,
    and torch's choice of attention, which for shared heads is another in bf16 than in fp32."""
    model = build_of(small_model(**FAMILY[name]), "bf16").cuda()
    tokens = [part.cuda() for part in batch()]
    losses, gradients = [], []
    for loss_of in (plain_loss(model), fuse(model, dtype)):
        model.zero_grad(set_to_none=True)
        loss = loss_of(*tokens)
        loss.backward()
        losses.append(loss.item())
        gradients.append(grads_of(model))
    assert losses[1] == pytest.approx(losses[0], rel=bound / 10)
    assert worst_error(gradients[1], gradients[0]) < bound


@pytest.mark.parametrize("name", ["grouped", "tied", "wide heads", "qwen2", "qwen3"])
def test_quantized_products_of_shared_heads(name: str) -> None:
    """The kernels' w4a4 in fp32: the same function, but for codes on a rounding border."""
    model = build_of(small_model(**FAMILY[name]), "w4a4").cuda()
    tokens = [part.cuda() for part in batch()]
    expected = plain_loss(model)(*tokens)
    loss = fuse(model)(*tokens)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    assert all(grad.isfinite().all() for grad in grads_of(model).values())
