"""The model in a form for prediction on a CPU: projections packed for its matrix products, in float32 or int8.

    model = LCMForMultitaskPretraining.from_pretrained(folder, quantization_config=LCMPackedConfig("int8"))

The products are PyTorch's own: oneDNN for float32 (weights laid out once instead of at every call) and FBGEMM for int8
(weights rounded per output channel at load, activations per call: dynamic quantisation). Memory-reading projections
are packed head by head, so that cross-attention still never projects the memory.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from .fast_paths_lcm import HeadProducts, is_plain


logger = logging.get_logger(__name__)

METHOD = "lcm_packed"
WEIGHTS = ("float32", "int8")


def has_int8_products() -> bool:
    """Whether PyTorch brings FBGEMM here, and still has the tensors that it takes (deprecated in PyTorch 2.13)."""
    return hasattr(torch, "quantize_per_channel") and "fbgemm" in torch.backends.quantized.supported_engines


class LCMPackedConfig(QuantizationConfigMixin):
    """How `from_pretrained(..., quantization_config=...)` packs the decoder's projections for prediction on a CPU.

    Args:
        weights (`str`, *optional*, defaults to `"int8"`): "float32" (the same numbers, faster for few subjects)
            or "int8" (a quarter of the memory, fastest, rounded).

    Raises:
        ValueError: another value, or a CPU that PyTorch has no int8 products for.
    """

    def __init__(self, weights: str = "int8", quant_method: str = METHOD) -> None:
        self.quant_method: Any = quant_method
        self.weights = weights
        if weights not in WEIGHTS:
            raise ValueError(
                f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}. For bfloat16 or float16 pass "
                "dtype=torch.bfloat16 or dtype=torch.float16 to from_pretrained instead."
            )
        if weights == "int8" and not has_int8_products():
            raise ValueError(
                "This PyTorch has no int8 products for this processor (fbgemm, for x86, is needed). "
                "Load the model without quantization_config."
            )
        if weights == "float32" and not torch.backends.mkldnn.is_available():
            raise ValueError("PyTorch was built without oneDNN here. Load the model without quantization_config.")


class PackedProduct:
    """`x W^T + b` with a packed weight; `x` is `(rows, in)` float32 on the CPU.

    Args:
        weight (`Tensor` of shape `(out, in)`): any floating type.
        bias (`Tensor` of shape `(out,)`, *optional*): the same.
        weights (`str`): "float32" or "int8".
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, weights: str) -> None:
        weight = weight.detach().float().contiguous()
        self.bias = None if bias is None else bias.detach().float()
        self.packed: Any
        if weights == "int8":
            scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
            zeros = torch.zeros(len(scales), dtype=torch.long)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.quantize_per_tensor, torch.quantize_per_channel", UserWarning)
                quantised = torch.quantize_per_channel(weight, scales, zeros, axis=0, dtype=torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(quantised, self.bias)
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.is_int8 = weights == "int8"

    def __call__(self, rows: Tensor) -> Tensor:
        """`(rows, in)` -> `(rows, out)`."""
        if rows.device.type != "cpu":
            raise ValueError(f"This model is packed for the CPU and cannot take input on {rows.device}.")
        if self.is_int8:
            # Without int8 dot products (VNNI) sums of two full-range products overflow: one bit less avoids that.
            return torch.ops.quantized.linear_dynamic(rows.float(), self.packed, reduce_range=True)
        return torch.ops.mkldnn._linear_pointwise(rows.float(), self.packed, self.bias, "none", [], "")


class PackedLinear(nn.Module):
    """A Linear whose weight is packed: `(..., in)` -> `(..., out)`."""

    def __init__(self, linear: nn.Linear, weights: str) -> None:
        super().__init__()
        self.product = PackedProduct(linear.weight, linear.bias, weights)

    def forward(self, inputs: Tensor) -> Tensor:
        """`(..., in)` -> `(..., out)`."""
        return self.product(inputs.flatten(0, -2)).unflatten(0, inputs.shape[:-1])


class Remembered(nn.Module):
    """A packed projection that gives its last result again while it is asked the same.

    In the first layer all subjects ask the same, so queries and folded keys are computed once for a model.
    """

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """The projection of the inputs."""
        last = self._last
        if last is None or not torch.equal(last[0], inputs):
            last = self._last = inputs.clone(), self.projection(inputs)
        return last[1]


class RememberedHeads(Remembered, HeadProducts):
    """The same for [`PackedHeads`]."""


class PackedHeads(HeadProducts):
    """A key or value projection of folded cross-attention, one packed product per head."""

    def __init__(self, linear: nn.Linear, heads: int, is_key: bool, weights: str) -> None:
        super().__init__()
        parts = linear.weight.unflatten(0, (heads, -1))
        biases = linear.bias.unflatten(0, (heads, -1))
        # Queries (head_dim) go to the memory's width, its sums (d) back to head_dim. Key biases cancel in the softmax.
        self.products = [
            PackedProduct(part.T if is_key else part, None if is_key else bias, weights)
            for part, bias in zip(parts, biases, strict=True)
        ]

    def forward(self, states: Tensor) -> Tensor:
        """`(rows, heads, in)` -> `(rows, heads, out)`."""
        return torch.stack([product(rows) for product, rows in zip(self.products, states.unbind(1), strict=True)], 1)


def pack(model: nn.Module, weights: str = "int8") -> nn.Module:
    """Pack the decoder's projections of a loaded model in place; for prediction only, and not to be saved.

    Stem, embeddings, norms and read-out stay in float32: they are small, and the read-out's rounding would be the
    result's.

    Args:
        model (`nn.Module`): any LCM model, on the CPU.
        weights (`str`, *optional*, defaults to `"int8"`): "float32" or "int8".

    Raises:
        ValueError: the model holds adapters, hooks or projections of another kind, or is not on the CPU.
    """
    LCMPackedConfig(weights)
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ == "LCMDecoderLayer"]
    for layer in layers:
        attentions = (layer.self_attn, layer.cross_attn)
        linears = [getattr(a, f"{part}_proj") for a in attentions for part in "qkvo"] + [layer.fc1, layer.fc2]
        if not is_plain(*linears):
            raise ValueError(
                "The model has adapters, hooks or quantised layers on its projections; packing would lose them. Merge "
                "adapters first (merge_and_unload() of a PeftModel, or save the merged model), then pack."
            )
        if any(linear.weight.device.type != "cpu" for linear in linears):
            raise ValueError("Packed weights are for the CPU: load the model with device_map='cpu', or without it.")
    # Transformers forbids a cast of quantised models; here what is not packed has to be float32.
    nn.Module.float(model).requires_grad_(False)
    for layer in layers:
        cross, heads = layer.cross_attn, layer.cross_attn.q_proj.out_features // layer.cross_attn.head_dim
        cross.k_proj = PackedHeads(cross.k_proj, heads, True, weights)
        cross.v_proj = PackedHeads(cross.v_proj, heads, False, weights)
        for owner, names in (
            (layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
            (cross, ("q_proj", "o_proj")),
            (layer, ("fc1", "fc2")),
        ):
            for name in names:
                setattr(owner, name, PackedLinear(getattr(owner, name), weights))
    models: list[Any] = [module for module in model.modules() if hasattr(module, "is_packed")]
    for part in models:  # the model, and the base model inside it
        part.is_packed = True
    first = layers[0]
    for name in ("v_proj", "o_proj"):
        setattr(first.self_attn, name, Remembered(getattr(first.self_attn, name)))
    first.cross_attn.q_proj = Remembered(first.cross_attn.q_proj)
    first.cross_attn.k_proj = RememberedHeads(first.cross_attn.k_proj)
    return model.eval()


def _refuse_adapter(adapter: Any = None, *args: Any, **kwargs: Any) -> None:
    raise ValueError(
        f"The adapter {adapter} cannot be put on packed weights. Load it without quantization_config (load_adapter), "
        "merge it (merge_and_unload()), save the merged model, and load that with quantization_config."
    )


class LCMPackedQuantizer(HfQuantizer):
    """Transformers' way from `quantization_config` to [`pack`]."""

    requires_calibration = False

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse a device other than the CPU."""
        devices = device_map.values() if isinstance(device_map, dict) else [device_map]
        wrong = [str(device) for device in devices if device is not None and str(device) != "cpu"]
        if wrong:
            raise ValueError(
                f"Packed weights are for the CPU, but device_map asks for {', '.join(wrong)}. Leave it out, or "
                "load with dtype=torch.bfloat16 on that device."
            )

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What is not packed is float32."""
        return torch.float32

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config: Any = self.quantization_config
        # `from_pretrained` of an adapter's folder loads the adapter only now, onto what it cannot adapt.
        model.load_adapter = _refuse_adapter
        return pack(model, config.weights)

    def is_serializable(self) -> bool:
        """Packed weights depend on the processor and are not saved; Transformers then points to this warning."""
        logger.warning(
            "Packed weights depend on the processor and are not saved: load the model without quantization_config, "
            "and save that."
        )
        return False

    @property
    def is_trainable(self) -> bool:
        """Packed weights have no gradients."""
        return False


if METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config(METHOD)(LCMPackedConfig)
    register_quantizer(METHOD)(LCMPackedQuantizer)
