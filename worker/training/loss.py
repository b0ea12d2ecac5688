"""Cross-entropies of the trained tokens, without the logits of a whole batch ever existing.

The head is frozen, so each chunk of tokens is projected once and its gradient is taken at once: with p = softmax(h Wᵀ),
d(-log p[y]) / dh = (p - onehot(y)) W. Sums and softmax are in fp32, the two matrix products in the head's own format.
"""

from typing import Any

import torch
from torch import Tensor

LOGITS_PER_CHUNK = 2**25
"""At 4 bytes a logit a chunk takes 128 MiB, 261 tokens of a vocabulary of 128,256: less than a layer's backward pass needs."""


def cross_entropies(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log p[target] of each token, fp32 [tokens]. Its gradient can be taken once.

    `hidden` [tokens, width] and the head's `weight` [vocabulary, width] in one format, `targets` int64 [tokens].
    """
    return _CrossEntropies.apply(hidden, weight, targets)


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        rows = max(1, LOGITS_PER_CHUNK // weight.shape[0])
        for start in range(0, len(targets), rows):
            chunk = slice(start, start + rows)
            wanted = targets[chunk, None]
            scores = (hidden[chunk] @ weight.T).float()
            scores -= scores.amax(dim=1, keepdim=True)
            at_target = scores.gather(1, wanted)
            total = scores.exp_().sum(dim=1, keepdim=True)
            losses[chunk] = (total.log() - at_target)[:, 0]
            if gradient is not None:
                scores /= total
                scores.scatter_add_(1, wanted, scores.new_full((1, 1), -1.0).expand_as(wanted))
                gradient[chunk] = scores.to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        # The upstream gradient stays fp32: with fp16's loss scale in it, it may be over what fp16 can hold. In place, because
        # this is where a step's memory is highest.
        return gradient.mul_(upstream[0][:, None]), None, None
