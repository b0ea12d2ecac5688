"""A frozen linear layer and what an adapter adds to it, rounded once.

bf16 has 8 significant bits. The base's output rounded to it swallows most of what an adapter adds in its first steps, about a
thousandth of it: after eight steps of a 135M model the loss was 3.46 with two roundings, 3.31 with one, as in fp32.
"""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

ALIGNMENT = 8
"""Matrix products are fast when the number of summands is a multiple of it."""


def round_once(model: PeftModel, dtype: torch.dtype) -> None:
    """Makes each layer under a LoRA adapter compute in `dtype` with one sum. DoRA and 8-bit layers stay as they are: the first
    scales its sum, the second multiplies integers."""
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # a sum in parts would be rounded in between
    for layer in model.modules():
        plain = isinstance(layer, LoraLayer) and type(layer.get_base_layer()) in (nn.Linear, Linear4bit)
        if plain and "default" not in layer.lora_variant:  # type: ignore[operator]
            layer.forward = Summed(layer, dtype)  # type: ignore[method-assign]


class Summed:
    """What peft's LoRA layers compute: x Wᵀ + bias + scaling · dropout(x) Aᵀ Bᵀ, [..., in] to [..., out]."""

    def __init__(self, layer: Any, dtype: torch.dtype):
        self._layer, self._dtype = layer, dtype

    def __call__(self, inputs: Tensor) -> Tensor:
        layer, inputs = self._layer, inputs.to(self._dtype)
        if layer.disable_adapters:
            return layer.base_layer(inputs)
        factors = [side["default"].weight.to(self._dtype) for side in (layer.lora_A, layer.lora_B)]
        reduced = layer.lora_dropout["default"](inputs) @ factors[0].T * layer.scaling["default"]
        return _LowRankSum.apply(inputs, reduced, factors[1], layer.base_layer)


class _LowRankSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, reduced: Tensor, factor: Tensor, base: Any) -> Tensor:
        """One product of [inputs, reduced, 1] and [weight, factor, bias]: its sums are fp32 until their end."""
        ctx.save_for_backward(reduced, factor)
        ctx.base = base
        ones = [] if base.bias is None else [inputs.new_ones(1).expand(*inputs.shape[:-1], 1)]
        bias = [] if base.bias is None else [base.bias.to(factor.dtype)[:, None]]
        return side_by_side([inputs, reduced, *ones]) @ side_by_side([weight_of(base), factor, *bias]).T

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        reduced, factor = ctx.saved_tensors
        slope = upstream[0]
        of_factor = slope.flatten(0, -2).T @ reduced.flatten(0, -2)
        return slope @ weight_of(ctx.base), slope @ factor, of_factor, None


def side_by_side(parts: list[Tensor]) -> Tensor:
    width = sum(part.shape[-1] for part in parts)
    padding = parts[0].new_zeros(1).expand(*parts[0].shape[:-1], -width % ALIGNMENT)
    return torch.cat([*parts, padding], dim=-1)


def weight_of(base: Any) -> Tensor:
    """[out, in] in the format that the layer computes in."""
    weight = base.weight
    return dequantize_4bit(weight.data, weight.quant_state) if isinstance(base, Linear4bit) else weight.detach()
