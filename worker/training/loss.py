"""Cross-entropy of the trained tokens, without the logits of a whole batch ever existing.

The head is frozen, so each chunk of tokens is projected once and its gradient is taken at once: with p = softmax(h Wᵀ),
d(-log p[y]) / dh = (p - onehot(y)) W. Sums and softmax are in fp32, the two matrix products in the head's own format.
"""

from typing import Any

import torch
from torch import Tensor

LOGITS_PER_CHUNK = 2**25
"""At 4 bytes a logit a chunk takes 128 MiB, 261 tokens of a vocabulary of 128,256: less than a layer's backward pass needs."""


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The sum of -log p[target] over the tokens, an fp32 scalar.

    `hidden` [tokens, width] and the head's `weight` [vocabulary, width] in one format, `targets` int64 [tokens].
    """
    return _SummedCrossEntropy.apply(hidden, weight, targets)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = max(1, LOGITS_PER_CHUNK // weight.shape[0])
        for start in range(0, len(targets), rows):
            chunk = slice(start, start + rows)
            wanted = targets[chunk, None]
            scores = (hidden[chunk] @ weight.T).float()
            scores -= scores.amax(dim=1, keepdim=True)
            at_target = scores.gather(1, wanted)
            total = scores.exp_().sum(dim=1, keepdim=True)
            loss += (total.log() - at_target).sum()
            if gradient is not None:
                scores /= total
                scores.scatter_add_(1, wanted, scores.new_full((1, 1), -1.0).expand_as(wanted))
                gradient[chunk] = scores.to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        # The upstream gradient stays a scalar of fp32: with fp16's loss scale in it, it may be over what fp16 can hold.
        return gradient * upstream[0], None, None
