"""What the model can do with rows and prompts that it is not trained on, with the adapter and without."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from worker.data.plan import Plan
from worker.training.batches import RowOrder, collate, to_device
from worker.training.device import Device
from worker.training.model import evaluating, target_scores

EXTRA_TOKENS = 16
MOST_TOKENS = 256
"""An answer may be this much longer than the reference, and this long at most."""
ROWS_KEPT = 20
MOST_PERPLEXED = 100.0
"""A mean loss above this has no perplexity that says anything."""


def measure(
    model: PeftModel, plan: Plan, stop_token_ids: list[int], *, batch_size: int, precision: str, device: Device, adapter: bool
) -> dict[str, float]:
    """Of the plan's trained tokens: `eval_loss`, their mean cross-entropy in nats; `eval_perplexity`, its exponential;
    `eval_accuracy`, the share that the model held for the likeliest token; and `eval_stop_probability`, the mean probability of
    stop tokens where they are due, left out where none is. Micro-batches and chunks of logits are as large as in training."""
    stops = torch.tensor(stop_token_ids, dtype=torch.int64, device=device.torch)
    sums = torch.zeros(4, dtype=torch.float64, device=device.torch)
    tokens = 0
    with evaluating(model, precision, device, adapter=adapter):
        for indices in RowOrder(plan, batch_size, plan.rows):
            batch = to_device(collate([plan.row(index) for index in indices]), device.torch)
            losses, hits = target_scores(model, batch)
            at_stop = torch.isin(batch["targets"], stops)
            sums += torch.stack([losses.sum(), hits.sum(), (-losses[at_stop]).exp().sum(), at_stop.sum()])
            tokens += len(batch["targets"])
    loss, right, certainty, stopping = (sums / max(1, tokens)).tolist()
    measured = {"eval_loss": loss, "eval_accuracy": right}
    if loss <= MOST_PERPLEXED:
        measured["eval_perplexity"] = math.exp(loss)
    if stopping:
        measured["eval_stop_probability"] = certainty / stopping
    return measured


def answer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: list[dict[str, Any]],
    *,
    most_tokens: int,
    precision: str,
    device: Device,
    adapter: bool,
) -> list[str]:
    """The greedy answer to each sample's prompt, stripped, without its stop token. Prompts are asked together as long as they
    and their answers have at most `most_tokens`."""
    lengths = [
        min(MOST_TOKENS, len(tokenizer(sample["reference"], add_special_tokens=False)["input_ids"]) + EXTRA_TOKENS)
        for sample in samples
    ]
    answers = [""] * len(samples)
    with evaluating(model, precision, device, adapter=adapter):
        sizes = [len(sample["prompt_ids"]) + length for sample, length in zip(samples, lengths, strict=True)]
        for group in groups(sizes, most_tokens):
            prompts = [samples[index]["prompt_ids"] for index in group]
            stops = sorted({stop for index in group for stop in samples[index]["stop_token_ids"]})
            texts = generate(model, prompts, stops, max(lengths[index] for index in group), device)
            for index, ids in zip(group, texts, strict=True):
                stop = next((at for at, token in enumerate(ids) if token in samples[index]["stop_token_ids"]), len(ids))
                answers[index] = str(tokenizer.decode(ids[: min(stop, lengths[index])], skip_special_tokens=True)).strip()
    return answers


def groups(lengths: list[int], most_tokens: int) -> Iterator[list[int]]:
    """Indices of samples of similar length, together at most `most_tokens` with padding, so that the cache stays small."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if group and (len(group) + 1) * lengths[index] > most_tokens:
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
