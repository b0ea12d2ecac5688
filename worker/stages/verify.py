"""Holds what was made against what was trained, before anybody may download it.

`values`: verification, by artifact name, as the API shows it.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode, Stage
from worker.data import base_models
from worker.data.encoded_sets import make_encoder
from worker.exports.modelfile import write_modelfile
from worker.stages import Inputs, Outcome, OutputFile, Report, StageFailure
from worker.verification.adapter_file import verify_adapter
from worker.verification.chats import collect_chats, find_stop
from worker.verification.gguf_file import Expected, verify_file
from worker.verification.llama import count_threads
from worker.verification.merged_folder import check_merged
from worker.verification.samples import choose_documents, held_out_prompts, trained_samples
from worker.verification.source import Source
from worker.verification.weights import Weights

BETTER = {"q4_k_m": "q5_k_m", "q5_k_m": "q6_k", "q6_k": "q8_0", "q8_0": "bf16"}
"""What loses less than each quantization."""
FAR_OFF = 10.0
"""Times the limit: no other quantization brings that back."""


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    """StageFailure verification_failed when one of the files fails; its outcome has the figures of all."""
    torch.set_num_threads(count_threads())
    report("progress", message="Loading the base model")
    revision = inputs.values[Stage.PREPARE]["base_model"]["revision"]
    places: dict[str, Any] = {"cache_dir": inputs.cache_dir, "models_dir": inputs.models_dir}
    base = base_models.fetch(spec.base_model, revision, **places, token=inputs.secret(spec.hub_token), report=report)
    source = Source.of(base.path, inputs.folders[Stage.TRAIN] / "adapter", merged_folder(inputs))
    found: dict[str, dict[str, Any]] = {}
    if source.merged:
        report("progress", message="Verifying the merged model")
        found |= verify_merged(inputs, source)
    expected = expect(spec, inputs, base, source, report)
    made, folder = inputs.values[Stage.CONVERT], inputs.folders[Stage.CONVERT]
    for name in made["files"]:
        report("progress", message=f"Verifying {name}")
        found[name] = verify_file(folder / name, expected, inputs.most_kl)
    for name in made["adapters"]:
        report("progress", message=f"Verifying {name}")
        found[name] = verify_adapter(folder / name, folder / made["carrier"], expected, inputs.most_kl)
    right = [name for name in made["files"] if found[name]["passed"]]
    outcome = Outcome({"verification": found}, [describe_to_ollama(out, right, expected)] if right else [])
    require_passed(spec, outcome, report)
    return outcome


def describe_to_ollama(out: Path, names: list[str], expected: Expected) -> OutputFile:
    """Writes gguf/Modelfile. Ollama puts the BOS in front by itself when the file says so."""
    bos = expected.tokenizer.bos_token if expected.bos is not None else ""

    def render(turns: list[dict[str, Any]]) -> str:
        text = expected.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return str(text).removeprefix(bos)

    files = [Path(name).name for name in names]
    path = out / "Modelfile"
    path.write_text(write_modelfile(files, render if expected.template else None, expected.stops), encoding="utf-8")
    return OutputFile.of(out, path, name="gguf/Modelfile", kind="modelfile")


def merged_folder(inputs: Inputs) -> Path | None:
    """None for a job that makes none."""
    return inputs.folders[Stage.MERGE] / "merged" if Stage.MERGE in inputs.folders else None


def verify_merged(inputs: Inputs, source: Source) -> dict[str, dict[str, Any]]:
    """By artifact name: the shards of the merged model, which pass together."""
    assert source.merged is not None
    problems = list(check_merged(source.merged, Weights(source.base, source.adapter) if source.is_sum else None))
    verdict = {"method": "tensors", "passed": not problems, "problems": problems}
    return {f"merged/{path.name}": verdict for path in sorted(source.merged.glob("*.safetensors"))}


def expect(spec: JobSpec, inputs: Inputs, base: base_models.BaseModel, source: Source, report: Report) -> Expected:
    """What every file must have, from the trainer's tokenizer and the published one."""
    prepared = inputs.folders[Stage.PREPARE]
    encoder, tokenizer = make_encoder(base, spec), AutoTokenizer.from_pretrained(source.merged or source.base)
    texts = inputs.values[Stage.PREPARE]["format"] == "text"
    given = prepared / "chat_template.jinja"
    if given.exists() and not source.merged:
        tokenizer.chat_template = given.read_text(encoding="utf-8")
    documents = choose_documents(prepared, Weights(source.base).count, len(tokenizer))

    def tell(message: str) -> None:
        report("progress", message=message)

    template = None if encoder.template.source == "default" and texts else encoder.template.text
    chats = collect_chats(encoder, held_out_prompts(inputs), trained_samples(spec, inputs))
    return Expected(
        chats=[chat for chat in chats if template is not None or chat.turns is None],
        tokenizer=tokenizer,
        template=template,
        bos=encoder.bos,
        stop=find_stop(encoder, texts=texts or encoder.whole),
        stops=[str(tokenizer.convert_ids_to_tokens(index)) for index in sorted(encoder.stop_token_ids)],
        documents=documents,
        merged=source.merged_logits(documents, tell),
        base=source.base_logits(documents, tell),
    )


def require_passed(spec: JobSpec, outcome: Outcome, report: Report) -> None:
    """A warning with the figures for each file that fails, then StageFailure verification_failed."""
    failed = {name: verdict for name, verdict in outcome.values["verification"].items() if not verdict["passed"]}
    for name, verdict in failed.items():
        message = f"{name} is kept aside: {'; '.join(verdict['problems'])}."
        report("warning", code=FailureCode.VERIFICATION_FAILED, message=message, artifact=name, verification=verdict)
    if not failed:
        return
    name, verdict = next(iter(failed.items()))
    more = f" {len(failed) - 1} more files failed." if len(failed) > 1 else ""
    message = f"{name} is not the model that was trained: {'; '.join(verdict['problems'])}.{more}"
    patch = patch_of(spec, failed)
    hint = (
        "Ask for a quantization that loses less, or allow more in the setting TUNESMITH_MOST_KL."
        if patch
        else "Retry the job, which makes the file again. Files that fail twice point to a tokenizer or an architecture that "
        "llama.cpp's converter gets wrong: leave gguf out of exports."
    )
    raise StageFailure(FailureCode.VERIFICATION_FAILED, message, hint=hint, param="exports", patch=patch, outcome=outcome)


def patch_of(spec: JobSpec, failed: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The exports with the next better quantization for those that lose too much; None when something else is wrong."""
    kinds = {Path(name).stem.rpartition("-")[2] for name in failed}
    if not all(map(loses_too_much, failed.values())) or not kinds <= BETTER.keys():
        return None
    exports: list[dict[str, Any]] = []
    for export in (export.model_dump() for export in spec.exports):
        if export.get("quantization") in kinds:
            export["quantization"] = BETTER[export["quantization"]]
        if export not in exports:
            exports.append(export)
    return {"exports": exports}


def loses_too_much(verdict: dict[str, Any]) -> bool:
    """Whether nothing else is wrong with a file than that its quantization loses somewhat too much."""
    kl = verdict.get("kl")
    return kl is not None and len(verdict["problems"]) == 1 and verdict["most_kl"] < kl <= FAR_OFF * verdict["most_kl"]
