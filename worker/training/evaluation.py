"""What the model can do with rows and prompts that it is not trained on, with the adapter and without."""

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from worker.data.plan import Plan
from worker.training.batches import RowOrder, collate, to_device
from worker.training.device import Device
from worker.training.model import evaluating, target_losses

EXTRA_TOKENS = 16
MOST_TOKENS = 256
"""An answer may be this much longer than the reference, and this long at most."""
TOKENS_PER_BATCH = 4096
ROWS_KEPT = 20


def held_out_loss(model: PeftModel, plan: Plan, *, batch_size: int, precision: str, device: Device, adapter: bool) -> float:
    """Mean cross-entropy of the plan's trained tokens."""
    total = torch.zeros((), device=device.torch)
    tokens = 0
    with evaluating(model, precision, device, adapter=adapter):
        for indices in RowOrder(plan, batch_size, plan.rows):
            batch = to_device(collate([plan.row(index) for index in indices]), device.torch)
            total += target_losses(model, batch).sum()
            tokens += len(batch["targets"])
    return total.item() / max(1, tokens)


def answer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: list[dict[str, Any]],
    *,
    precision: str,
    device: Device,
    adapter: bool,
) -> list[str]:
    """The greedy answer to each sample's prompt, stripped, without its stop token."""
    lengths = [
        min(MOST_TOKENS, len(tokenizer(sample["reference"], add_special_tokens=False)["input_ids"]) + EXTRA_TOKENS)
        for sample in samples
    ]
    answers = [""] * len(samples)
    with evaluating(model, precision, device, adapter=adapter):
        for group in groups([len(sample["prompt_ids"]) + length for sample, length in zip(samples, lengths, strict=True)]):
            prompts = [samples[index]["prompt_ids"] for index in group]
            stops = sorted({stop for index in group for stop in samples[index]["stop_token_ids"]})
            texts = generate(model, prompts, stops, max(lengths[index] for index in group), device)
            for index, ids in zip(group, texts, strict=True):
                stop = next((at for at, token in enumerate(ids) if token in samples[index]["stop_token_ids"]), len(ids))
                answers[index] = str(tokenizer.decode(ids[: min(stop, lengths[index])], skip_special_tokens=True)).strip()
    return answers


def groups(lengths: list[int]) -> Iterator[list[int]]:
    """Indices of samples of similar length, together at most TOKENS_PER_BATCH with padding, so that the cache stays small."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if group and (len(group) + 1) * lengths[index] > TOKENS_PER_BATCH:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def generate(
    model: PeftModel, prompts: list[list[int]], stops: list[int], max_new_tokens: int, device: Device
) -> list[list[int]]:
    """The new tokens of each prompt. Prompts are padded on the left, so that all of them end where the answers start."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros((len(prompts), width), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    made = model.generate(
        input_ids=ids.to(device.torch),
        attention_mask=mask.to(device.torch),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
    )
    return made[:, width:].tolist()


def compare(samples: list[dict[str, Any]], before: list[str], after: list[str]) -> dict[str, Any]:
    """How many answers are exactly the reference, and the first rows in full."""
    references = [sample["reference"].strip() for sample in samples]
    rows = [
        {"prompt": sample["prompt"], "question": sample["question"], "reference": reference, "before": old, "after": new}
        for sample, reference, old, new in zip(samples, references, before, after, strict=True)
    ]
    return {
        "exact_before": sum(row["before"] == row["reference"] for row in rows),
        "exact_after": sum(row["after"] == row["reference"] for row in rows),
        "count": len(rows),
        "rows": rows[:ROWS_KEPT],
    }
