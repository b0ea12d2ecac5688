"""A run's settings in the words of SFTTrainer."""

from trl import SFTConfig

from worker.training import Run

SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def arguments(run: Run) -> SFTConfig:
    """SFTTrainer's settings. Its bf16 flag stays off: it only wraps model.forward in autocast, which our loss does not call."""
    training, on_gpu = run.spec.training, run.device.is_cuda
    fp16 = training.precision == "fp16"
    # A fused step hides from accelerate that fp16 skipped it, and the learning rate would move on.
    adamw = "adamw_torch_fused" if on_gpu and not fp16 else "adamw_torch"
    return SFTConfig(
        output_dir=str(run.out / "checkpoints"),
        max_steps=run.total_steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=SCHEDULERS[training.scheduler],
        warmup_steps=run.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=adamw if training.optimizer == "adamw" else "adamw_8bit",
        seed=training.seed,
        fp16=fp16,
        bf16=False,
        use_cpu=not on_gpu,
        gradient_checkpointing=False,  # load_base does it; done here, it makes the embeddings' output need a gradient
        logging_steps=1,
        logging_nan_inf_filter=False,  # it reads every micro-step's loss, and hides the ones that are no number
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["targets"],
        average_tokens_across_devices=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
