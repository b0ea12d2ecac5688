"""The engine on transformers, trl and peft: SFTTrainer's loop over our plan, with our loss and our checkpoints.

SFTTrainer keeps the loop: accumulation, mixed precision, clipping, optimizer, schedule and their order. Ours are the data
(tokenised, packed and ordered before), the loss (it needs less memory) and what is written to disk (complete or absent).
"""

import json
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import accelerate.utils.environment
import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback, TrainerControl
from trl import SFTTrainer

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode
from worker.space import require_space
from worker.stages import StageFailure, StageStopped
from worker.training import Run, Trained, checkpoints, evaluation, failures, restoration
from worker.training.adapter_modules import unties
from worker.training.batches import RowOrder, count_rows
from worker.training.best import Best
from worker.training.checkpoints import Checkpoint, Unfit
from worker.training.model import (
    attach_adapter,
    autocast,
    check_head,
    load_adapter,
    load_base,
    save_adapter,
)
from worker.training.objectives import Objective, open_objective
from worker.training.progress import Counters, Progress
from worker.training.restoration import restoring
from worker.training.trl_settings import arguments

# To learn its defaults accelerate empties the environment for a moment, and a thread that reads it then dies of SIGSEGV.
accelerate.utils.environment.clear_environment = nullcontext


def train(run: Run) -> Trained:
    """StageFailure out_of_memory, nan_loss, model_unsupported, invalid_spec; StageStopped once a checkpoint is written."""
    loaded = False
    try:
        run.report("progress", message="Loading the base model")
        base = load_base(run.base, run.spec, run.device)
        if unties(base, run.spec):
            message = "The base model's embeddings and output head share their weights; after this training each has its own."
            run.report("warning", code="embeddings_untied", message=message)
        model = attach_adapter(base, run.spec, run.base_revision)
        check_head(model, run.spec, run.device)
        if run.adapter:
            start_from(run.adapter, model, run.spec)
        loaded = True
        return train_adapter(run, model)
    except Exception as problem:
        if not failures.is_out_of_memory(problem):
            raise
        raise failures.out_of_memory(run.spec, run.device.name, training=loaded) from problem


def start_from(adapter: Path, model: PeftModel, spec: JobSpec) -> None:
    try:
        load_adapter(model, adapter)
    except ValueError as problem:
        message = f"The adapter of {spec.from_job} does not fit this job's: {problem}."
        raise StageFailure(FailureCode.INVALID_SPEC, message, param="from_job", patch={"from_job": None}) from problem


def train_adapter(run: Run, model: PeftModel) -> Trained:
    """From the first checkpoint that fits, or from the start."""
    require_space(run.out, written_bytes(run, model), "Training")
    tokenizer = AutoTokenizer.from_pretrained(run.base, local_files_only=True, trust_remote_code=False)
    trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    untrained = {name: weight.detach().to("cpu", copy=True) for name, weight in trained}
    while True:
        checkpoint = next(run.checkpoints, None)
        try:
            return train_from(checkpoint, run, model, tokenizer)
        except Unfit as reason:
            assert checkpoint is not None
            checkpoints.report_skipped(run.report, checkpoint.path, "unfit", str(reason))
            model.load_state_dict(untrained, strict=False)


def written_bytes(run: Run, model: PeftModel) -> int:
    """The adapter in fp32, and in each checkpoint it, the best one and the optimizer's two moments; one more is written than is
    kept."""
    weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    moments = 8 if run.spec.training.optimizer == "adamw" else 2
    checkpoints = run.spec.checkpoints.keep + 1 if run.spec.checkpoints.every_steps else 1
    best = 4 if run.spec.early_stopping else 0
    return weights * (4 + checkpoints * (4 + best + moments))


def train_from(checkpoint: Checkpoint | None, run: Run, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> Trained:
    counters = restoration.read_counters(checkpoint, run) if checkpoint else Counters()
    objective = open_objective(run, model, checkpoint)
    if counters.held_out != run.held_out:
        counters.measured_base, counters.answers_before = measure(run, objective, model, tokenizer, adapter=False)
        counters.held_out = run.held_out
    trainer = PlanTrainer(run, model, objective, tokenizer, counters, checkpoint)
    with run.report.holding_stop():
        trainer.go_on(checkpoint)
        if run.report.stop_requested:
            trainer.save_unless_saved()
            raise StageStopped
    trainer.progress.count_seconds()
    trainer.progress.report_memory()
    try:
        trainer.settle_best()
        (run.out / "adapter").mkdir()
        save_adapter(model, run.out / "adapter")
        measured, answers_after = measure(run, objective, model, tokenizer, adapter=True)
    except BaseException:  # stopped, or out of memory: the next attempt shall only measure
        trainer.save_unless_saved()
        raise
    return Trained(
        steps=counters.step,
        train_seconds=counters.train_seconds,
        train_loss=counters.train_loss,
        final_loss=counters.last_loss,
        last_metrics=counters.last_metrics,
        measured_base=counters.measured_base,
        measured=measured,
        samples=evaluation.compare(run.samples, counters.answers_before or [], answers_after) if run.samples else None,
        trainable_parameters=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        resumed_from_step=checkpoint.step if checkpoint else None,
        best_step=counters.best_step,
        stopped_early=counters.stopped_early,
    )


def measure(
    run: Run, objective: Objective, model: PeftModel, tokenizer: PreTrainedTokenizerBase, *, adapter: bool
) -> tuple[dict[str, float], list[str]]:
    """What the objective measures on the held-out rows, and the answers to the samples."""
    which = "trained" if adapter else "base"
    answers: list[str] = []
    if run.validation:
        run.report("progress", message=f"Measuring the held-out loss of the {which} model")
    measured = objective.measure(adapter=adapter)
    if run.samples:
        run.report("progress", message=f"Answering {len(run.samples)} held-out prompts with the {which} model")
        training = run.spec.training
        options: dict[str, Any] = {"precision": training.precision, "device": run.device, "adapter": adapter}
        most_tokens = training.batch_size * training.max_seq_length
        answers = evaluation.answer(model, tokenizer, run.samples, most_tokens=most_tokens, **options)
    return measured, answers


class PlanTrainer(SFTTrainer):
    """SFTTrainer whose rows, loss and checkpoints are ours."""

    def __init__(
        self,
        run: Run,
        model: PeftModel,
        objective: Objective,
        tokenizer: PreTrainedTokenizerBase,
        counters: Counters,
        checkpoint: Checkpoint | None = None,
    ):
        self.run, self.adapted = run, model
        self.best = Best(run, model, counters, checkpoint) if run.spec.early_stopping else None
        self.objective: Objective = objective
        self.progress = Progress(counters, run)
        self.saved_step = counters.step
        exact = [(weight, weight.data) for weight in model.parameters() if weight.requires_grad]
        super().__init__(
            model=model,
            args=arguments(run),
            train_dataset=Dataset.from_dict({"row": [0]}),  # SFTTrainer wants one; get_train_dataloader does not use it
            data_collator=objective.collate,  # type: ignore[arg-type]
            processing_class=tokenizer,
            callbacks=[StepCallback(self)],
        )
        self.model_accepts_loss_kwargs = True  # the loss is divided by the window's count, so not by its micro-batches again
        for weight, data in exact:
            weight.data = data  # trl rounds the adapters of a quantised model to bf16

    def go_on(self, checkpoint: Checkpoint | None) -> None:
        """Trains from the checkpoint, or the start, to the end; one that was stopped early has ended."""
        if checkpoint and self.progress.counters.stopped_early:
            self._load_from_checkpoint(str(checkpoint.path))
            self.progress.start()
        else:
            self.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)

    def settle_best(self) -> None:
        """Makes the adapter the best one, with early stopping. The last one is saved before, or a later attempt would take
        the best one for it."""
        counters = self.progress.counters
        if self.best is None:
            return
        if counters.considered_step != counters.step:
            self.run.report("progress", message="Measuring the held-out loss of the last step")
            self.best.consider(self.objective.measure(adapter=True)["eval_loss"])
        if counters.best_step != counters.step:
            self.save_unless_saved()
            self.best.restore()

    def get_train_dataloader(self) -> DataLoader:
        training, plan = self.run.spec.training, self.run.plan
        order = RowOrder(plan, training.batch_size, count_rows(plan.rows, training))
        rows, collate = self.objective.rows, self.objective.collate
        return DataLoader(rows, batch_sampler=order, collate_fn=collate, pin_memory=self.run.device.is_cuda)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], int]:
        """The micro-batches of one step, and what the sum of their losses is divided by."""
        window = list(islice(epoch_iterator, num_batches))
        self.progress.window_started(
            rows=sum(batch["rows"] for batch in window),
            tokens=sum(batch["tokens"] for batch in window),
            trained_tokens=sum(len(batch["targets"]) for batch in window),
        )
        return window, sum(map(self.objective.count, window))

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        with autocast(self.run.spec.training.precision, self.run.device):
            loss = self.objective.summed_loss(inputs) / max(1, num_items_in_batch)
        self.progress.meter.sample()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        self.state.log_history.clear()  # it would grow into every checkpoint
        if "loss" in logs:
            every = self.run.spec.evaluation.every_steps
            due = every and self.state.global_step % every == 0
            measured = self.progress.step_done(
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=logs["grad_norm"],
                metrics=self.objective.take_metrics(),
                evaluate=partial(self.objective.measure, adapter=True) if due else None,
            )
            if self.best and measured:
                self.best.consider(measured["eval_loss"])
                if self.best.gives_up:
                    self.progress.counters.stopped_early = self.control.should_training_stop = True

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # its count walks over every parameter in each micro-step and nobody reads it

    def save_unless_saved(self) -> None:
        if self.saved_step != self.progress.counters.step:
            self._save_checkpoint(self.adapted, None)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run, step = self.run, self.state.global_step
        self.progress.count_seconds()
        folder = run.out / "checkpoints"
        saved = checkpoints.write(folder, step, self._fill, lock=run.lock)
        checkpoints.prune(folder, run.spec.checkpoints.keep)
        self.saved_step = step
        run.report("checkpoint", step=step, bytes=saved.bytes, metrics=self.progress.last_metrics)

    def _fill(self, folder: Path) -> None:
        """The files that Trainer reads on resume, none of which needs a pickle to be trusted."""
        save_adapter(self.adapted, folder)
        self.objective.save(folder)
        if self.best:
            self.best.save(folder)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / "trainer_state.json"))
        (folder / restoration.COUNTERS).write_text(json.dumps(asdict(self.progress.counters)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with restoring("adapter"):
            load_adapter(self.adapted, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with restoring("optimizer or schedule"):
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint:
                restoration.check_optimizer(self.optimizer)
                restoration.check_schedule(self.lr_scheduler, self.progress.counters.step)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with restoring("gradient scaler"):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with restoring("random state"):
            super()._load_rng_state(checkpoint)


class StepCallback(TrainerCallback):
    """Decides after each step whether to save and whether to go on."""

    def __init__(self, trainer: PlanTrainer):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.progress.start()

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        run = self._trainer.run
        every = run.spec.checkpoints.every_steps
        stop = run.report.stop_requested
        control.should_save = stop or bool(every and state.global_step % every == 0)
        control.should_training_stop = control.should_training_stop or stop
