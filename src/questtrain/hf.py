"""``import questtrain.hf``: transformers loads a folder of ``questtrain export format=hf`` whose
activations are quantized, as any other model.

It registers a quantizer that puts the trained layers in the place of the model's linear ones before
their tensors are read. transformers is imported here alone, and by the formats that it reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from questtrain.model.hf_quantization import METHOD, layer_settings
from questtrain.quant import QuantLinear
from questtrain.quant.guarded_linear import GuardedLinear


@register_quantization_config(METHOD)
class QuestConfig(QuantizationConfigMixin):
    """``quantization_config`` of config.json (`questtrain.model.hf_quantization`)."""

    def __init__(self, **settings: Any) -> None:
        settings.pop("quant_method", None)
        self.quant_method = METHOD
        layer_settings(settings)
        for name, value in settings.items():
            setattr(self, name, value)


@register_quantizer(METHOD)
class QuestQuantizer(HfQuantizer):
    """Layers that were trained with quantized operands: there is nothing to calibrate, and no way
    here to quantize a model that was not."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        """Replace the linear layers, which are on the meta device, by layers that hold what the
        file does."""
        settings = layer_settings(vars(self.quantization_config))
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name not in settings.skipped:
                with torch.device("meta"):
                    linear = QuantLinear(
                        module.in_features,
                        module.out_features,
                        module.bias is not None,
                        settings.bits,
                        settings.quant,
                    )
                model.set_submodule(name, GuardedLinear.empty(linear))

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **_: Any
    ) -> PreTrainedModel:
        for module in model.modules():
            if isinstance(module, GuardedLinear):
                module.write_signs()
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False
