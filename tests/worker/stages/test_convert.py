import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import save_file
from supervising import PATIENCE_SECONDS, is_gone, wait_until

from app.jobs.spec import BUILT_IN_MODEL, JobSpec
from app.jobs.states import FailureCode, Stage
from worker.data import base_models
from worker.data.gguf_weights import Q8_0, read_gguf
from worker.exports import converter
from worker.stages import Inputs, Outcome, Report, StageFailure
from worker.stages.convert import run

ROOT = Path(__file__).parents[3]
CONVERTER = Path(sys.prefix) / "share/tunesmith/llama.cpp"
TITLE = "Ärzte: my model"


@pytest.fixture(scope="module")
def built_in(tmp_path_factory) -> Path:
    return base_models.fetch(
        BUILT_IN_MODEL, None, cache_dir=tmp_path_factory.mktemp("cache"), models_dir=None, report=lambda *_, **__: None
    ).path


@pytest.fixture(scope="module")
def converted(tiny, tmp_path_factory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("converted")
    return out, convert(tiny, out, "q8_0", "q8_0")


@pytest.fixture(scope="module")
def tiny(built_in, tmp_path_factory) -> Path:
    """A random Llama of a few million weights with the built-in model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("tiny") / "merged"
    shutil.copytree(built_in, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = LlamaConfig.from_pretrained(built_in)
    config.update({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4})
    config.update({"num_key_value_heads": 2, "head_dim": 16})
    set_seed(0)
    LlamaForCausalLM(config).half().save_pretrained(folder)
    return folder


def make_inputs(model: Path, converter: Path) -> Inputs:
    return Inputs(
        cache_dir=model,
        models_dir=None,
        converter_dir=converter,
        title=TITLE,
        folders={Stage.MERGE: model.parent},
        values={Stage.MERGE: {"merged": model.name}},
    )


def make_spec(*quantizations: str) -> dict:
    exports = [
        {"kind": "adapter"},
        {"kind": "merged"},
        *({"kind": "gguf", "quantization": quantization} for quantization in quantizations),
    ]
    return {"base_model": BUILT_IN_MODEL, "dataset": {"file": "file-1"}, "exports": exports}


def convert(model: Path, out: Path, *quantizations: str, converter: Path = CONVERTER):
    out.mkdir(exist_ok=True)
    spec = JobSpec.model_validate(make_spec(*quantizations))
    return run(spec, make_inputs(model, converter), out, Report(out / "events.jsonl"))


def assert_described(metadata: dict, model: Path) -> None:
    """The file says what it is, and has the tokenizer of the model that it was made from."""
    config = json.loads((model / "config.json").read_text())
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    assert metadata["general.architecture"] == "llama"
    assert metadata["general.name"] == TITLE
    assert metadata["general.license"] == "apache-2.0"
    assert metadata["general.base_model.0.repo_url"].endswith("/HuggingFaceTB/SmolLM2-135M-Instruct")
    assert metadata["tokenizer.chat_template"] == (model / "chat_template.jinja").read_text()
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        assert metadata[f"tokenizer.ggml.{theirs}_token_id"] == config[f"{ours}_token_id"]
    assert {token: number for number, token in enumerate(metadata["tokenizer.ggml.tokens"])} == vocabulary


def ask(path: Path, question: str, tokens: int = 16) -> str:
    command = [sys.executable, ROOT / "examples/ask.py", path, question, "--max-tokens", str(tokens)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_it_makes_a_gguf_that_llama_cpp_runs(tiny, converted):
    out, outcome = converted
    [file] = outcome.files
    path = out / file.path
    assert (file.name, file.kind) == ("gguf/Arzte-my-model-q8_0.gguf", "gguf")
    assert (file.bytes, file.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    metadata, tensors = read_gguf(path)
    assert_described(metadata, tiny)
    assert {name: tensor.kind for name, tensor in tensors.items()}["token_embd.weight"] == Q8_0
    ask(path, "Who are you?")


@pytest.mark.ml
def test_the_built_in_model_answers_from_every_kind(built_in, tmp_path):
    model = tmp_path / "merged"
    shutil.copytree(built_in, model)
    outcome = convert(model, tmp_path / "out", "f16", "bf16", "q8_0")
    kinds = ["f16", "bf16", "q8_0"]
    assert [file.name for file in outcome.files] == [f"gguf/Arzte-my-model-{kind}.gguf" for kind in kinds]
    for kind, file in zip(kinds, outcome.files, strict=True):
        reader = GGUFReader(tmp_path / "out" / file.path)
        assert_described({name: field.contents() for name, field in reader.fields.items()}, model)
        types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        assert len(types) == 272
        assert types["blk.0.attn_q.weight"] == kind.upper()
        # Each token of the answer leads by more than a nat, so that no rounding changes it.
        assert "Paris" in ask(tmp_path / "out" / file.path, "Name the capital of France.")


@pytest.mark.ml
@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("config.json", lambda config: config.update(architectures=["NovelForCausalLM"]), "the architecture NovelForCausalLM"),
        (
            "tokenizer.json",
            lambda tokenizer: tokenizer["pre_tokenizer"].update(
                pretokenizers=tokenizer["pre_tokenizer"]["pretokenizers"][1:] * 2
            ),
            "the pre-tokenizer of this model",
        ),
    ],
    ids=["architecture", "pre-tokenizer"],
)
def test_what_the_converter_does_not_know_is_named(tiny, tmp_path, name, edit, message):
    model = tmp_path / "merged"
    shutil.copytree(tiny, model)
    content = json.loads((model / name).read_text())
    edit(content)
    (model / name).write_text(json.dumps(content))
    with pytest.raises(StageFailure, match=message) as failure:
        convert(model, tmp_path / "out", "f16")
    assert failure.value.code == FailureCode.CONVERSION_FAILED
    assert failure.value.hint


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "merged").mkdir()
    weights = {"a.weight": torch.zeros(4, 4, dtype=torch.bfloat16)}
    save_file(weights, tmp_path / "merged/model.safetensors")
    return tmp_path / "merged"


def fake_converter(folder: Path, script: str) -> Path:
    """Stands for llama.cpp's converter; `target` is where it is told to write."""
    head = "import sys, os, signal, time\ntarget = sys.argv[sys.argv.index('--outfile') + 1]\n"
    (folder / "conversion.py").write_text("class ModelBase: prepare_tensors = None")
    (folder / "gguf.py").write_text("class GGUFWriter: _pack_val = None")
    (folder / "transformers.py").write_text("LlamaConfig = None")
    (folder / "convert_hf_to_gguf.py").write_text(head + script)
    return folder


@pytest.mark.provokes("conversion_failed", "verification_failed")
@pytest.mark.parametrize(
    ("script", "message", "code"),
    [
        ("print('Loading'); raise KeyError('rope_theta')", "KeyError: 'rope_theta'", FailureCode.CONVERSION_FAILED),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "failed", FailureCode.CONVERSION_FAILED),
        ("open(target, 'wb').write(b'GGUF' + bytes(3))", "cut off", FailureCode.VERIFICATION_FAILED),
        ("", "cut off", FailureCode.VERIFICATION_FAILED),
    ],
    ids=["exception", "crash", "truncated", "nothing"],
)
def test_a_failing_converter_fails_the_conversion(model, tmp_path, script, message, code):
    with pytest.raises(StageFailure, match=message) as failure:
        convert(model, tmp_path / "out", "f16", converter=fake_converter(tmp_path, script))
    assert (failure.value.code, failure.value.param) == (code, "exports")
    assert failure.value.patch == {"exports": [{"kind": "adapter"}, {"kind": "merged"}]}


def test_a_cut_off_gguf_is_refused(model, converted, tmp_path):
    whole = converted[0] / converted[1].files[0].path
    script = f"open(target, 'wb').write(open({str(whole)!r}, 'rb').read()[:4096])"
    with pytest.raises(StageFailure, match="cut off"):
        convert(model, tmp_path / "again", "f16", converter=fake_converter(tmp_path, script))


@pytest.mark.parametrize(
    ("script", "error"),
    [("print('OSError: [Errno 28] No space left on device'); sys.exit(1)", OSError), ("os.kill(os.getpid(), 9)", MemoryError)],
)
def test_a_machine_that_is_too_small_is_told_apart(model, tmp_path, script, error):
    with pytest.raises(error):
        convert(model, tmp_path / "out", "f16", converter=fake_converter(tmp_path, script))


def test_the_progress_bar_is_reported_and_kept_out_of_the_log(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(converter, "REPORT_SECONDS", math.inf)  # so that only the first is due, however busy the machine is
    bar = "sys.stderr.write('INFO: start\\n' + ''.join(f'Writing: {n:3}%|##| x\\r' for n in range(0, 101, 10))); sys.exit(1)"
    with pytest.raises(StageFailure):
        convert(model, tmp_path / "out", "f16", converter=fake_converter(tmp_path, bar))
    reports = [json.loads(line) for line in (tmp_path / "out/events.jsonl").read_text().splitlines()]
    assert [(report["kind"], report["message"]) for report in reports] == [("progress", "writing the outline: 0 %")]
    log = capsys.readouterr().out
    assert "INFO: start\n" in log and "Writing" not in log


def test_the_converter_runs_without_network_secrets_and_other_packages(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    converter = fake_converter(tmp_path, "import json; print('SEEN' + json.dumps(dict(os.environ))); sys.exit(1)")
    with pytest.raises(StageFailure) as failure:
        convert(model, tmp_path / "out", "f16", converter=converter)
    seen = json.loads(failure.value.message.partition("SEEN")[2])
    assert "HF_TOKEN" not in seen and seen["HF_HUB_OFFLINE"] == "1" and seen["PYTHONPATH"] == str(converter)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_the_converter_ends_with_its_stage(model, tmp_path, ending):
    converter = fake_converter(tmp_path, "open(target + '.pid', 'w').write(str(os.getpid())); time.sleep(600)")
    attempt = tmp_path / "attempt"
    attempt.mkdir()
    request = {"stage": "convert", "spec": make_spec("f16"), "inputs": make_inputs(model, converter).to_json()}
    (attempt / "input.json").write_text(json.dumps(request))
    stage = subprocess.Popen([sys.executable, "-m", "worker.stages", attempt], cwd=ROOT, stdin=subprocess.DEVNULL)
    wait_until(lambda: [note.read_text() for note in attempt.glob("out/*/outline/f16.gguf.pid")] > [""])
    [note] = attempt.glob("out/*/outline/f16.gguf.pid")
    child = int(note.read_text())
    assert os.getpgid(child) == os.getpgid(stage.pid)
    stage.send_signal(ending)
    stage.wait(PATIENCE_SECONDS)
    wait_until(lambda: is_gone(child))
    if ending == signal.SIGTERM:
        assert json.loads((attempt / "result.json").read_text())["status"] == "stopped"
