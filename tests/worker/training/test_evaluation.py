"""What is measured on held-out rows: the right numbers, within the memory of a training step."""

import math

import pytest
import torch
from test_trl_engine import documents_of, load, prepare
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worker.training import evaluation, loss
from worker.training.batches import collate, to_device
from worker.training.model import target_losses

STOPS = [7, 99, 200]


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside had at one time, and the largest of them."""

    def __init__(self):
        super().__init__()
        self._made = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        self._made = {key: found for key, found in self._made.items() if not found[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._made.values()))
        return result


@pytest.mark.parametrize("adapter", [True, False])
def test_the_measures_are_those_of_a_plain_forward_pass(tmp_path, adapter):
    run = prepare(tmp_path)
    model = load(run)
    losses, hits, at_stop = [], [], []
    with torch.no_grad() if adapter else model.disable_adapter(), torch.no_grad():
        for row in (run.plan.row(index) for index in range(run.plan.rows)):
            for input_ids, labels in documents_of(row):
                scores = model(input_ids=input_ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
                at = (labels[1:] >= 0).nonzero()[:, 0]
                targets = labels[1:][at]
                losses += (-scores[at, targets]).tolist()
                hits += (scores[at].argmax(-1) == targets).tolist()
                at_stop += [
                    math.exp(scores[place, target]) for place, target in zip(at, targets, strict=True) if target in STOPS
                ]
    options = {"batch_size": 3, "precision": "fp32", "device": run.device, "adapter": adapter}
    found = evaluation.measure(model, run.plan, STOPS, **options)
    assert found["eval_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["eval_perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert found["eval_accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert at_stop and found["eval_stop_probability"] == pytest.approx(sum(at_stop) / len(at_stop), rel=1e-4)
    assert "eval_stop_probability" not in evaluation.measure(model, run.plan, [], **options)


@pytest.mark.parametrize("memory", ["speed", "balanced"])
@pytest.mark.parametrize("adapter", [True, False])
def test_measuring_needs_less_memory_than_training(tmp_path, monkeypatch, adapter, memory):
    """With a vocabulary that is large beside the rest, as it is for a small model, and chunks that are small beside a row."""
    monkeypatch.setattr(loss, "LOGITS_PER_CHUNK", 300 * 16)
    run = prepare(tmp_path, memory=memory)
    model = load(run)
    training, measuring = LiveBytes(), LiveBytes()
    with training:
        batch = to_device(collate([run.plan.row(index) for index in range(3)]), run.device.torch)
        target_losses(model, batch).sum().backward()
    model.zero_grad()
    with measuring:
        evaluation.measure(model, run.plan, STOPS, batch_size=3, precision="fp32", device=run.device, adapter=adapter)
    assert measuring.peak < training.peak
    assert measuring.largest <= training.largest
    assert measuring.largest < len(batch["targets"]) * 300 * 4  # the logits of a batch never exist


def test_prompts_are_asked_together_only_as_far_as_a_training_batch_goes():
    lengths = [10, 200, 30, 40, 20, 60]
    found = list(evaluation.groups(lengths, 128))
    assert sorted(index for group in found for index in group) == list(range(6))
    assert all(len(group) * max(lengths[index] for index in group) <= 128 for group in found if len(group) > 1)
    assert len(found) < 6
