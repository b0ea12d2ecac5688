"""The experiment report, from jobs as the API shows them."""

import copy
import json
import math
import re

import pytest

from app.jobs import report
from app.jobs.spec import JobSpec

HEADINGS = ["Purpose", "Setup", "Performance observations", "Outcomes"]
SPEC = {
    "name": "Experiment 2",
    "purpose": "What do 50 steps teach?",
    "base_model": "smollm2-135m-instruct",
    "dataset": {"file": "file-1", "max_samples": 10000, "validation_fraction": 0.005},
    "training": {"max_steps": 50, "learning_rate": 1e-3, "max_seq_length": 128},
    "checkpoints": {"every_steps": 10},
}
TRAIN = {
    "adapter": "adapter",
    "train_seconds": 442.125,
    "steps": 50,
    "total_steps": 50,
    "final_loss": 0.0125,
    "samples": {
        "exact_before": 0,
        "exact_after": 49,
        "count": 50,
        "rows": [
            {
                "prompt": f"<s>Row {row}?",
                "question": f"Row {row}?",
                "reference": "FRI 7pm x4 Lopez",
                "before": "I'm sorry",
                "after": "FRI 7pm x4 Lopez",
            }
            for row in range(20)
        ],
    },
    "trainable_parameters": 4884480,
    "precision": "fp32",
    "attention": "sdpa",
    "resumed_from_step": None,
    "versions": {"torch": "2.13.0", "peft": "0.21.2"},
}
TEMPLATE = {"source": "model", "family": "chatml", "sha256": "ab" * 32, "bos_token_id": None, "stop_token_ids": [2]}
DATA = {
    **dict.fromkeys(("duplicates", "rows_leaked", "rows_untrained", "rows_dropped", "rows_split", "rows_unrolled"), 0),
    "duplicates": 7,
    "duplicate_lines": [3, 5, 8, 9, 10, 11, 12],
    "rows_cut": 1,
    "cut_lines": [4],
    "tokens_lost": 1200,
}
POINTS = [{"step": step, "loss": 5.0 / step, "eval_loss": None} for step in range(1, 51)]
CHECKPOINTS = [{"step": 50, "bytes": 58_720_256, "created_at": "2026-11-22T14:07:40Z", "resumable": True}]
UNKNOWN_PROGRESS = dict.fromkeys(("step", "total_steps", "percent", "epoch", "tokens_seen", "trained_tokens"))
UNKNOWN_MEMORY = dict.fromkeys(
    ("device", "device_total_bytes", "start_reserved_bytes", "peak_reserved_bytes", "training_reserved_bytes")
) | {"peak_percent": None, "training_percent": None}


def make_job(**changes):
    """A job that waits: nothing is known of it but its spec."""
    job = {
        "id": "job_1", "name": "Experiment 2", "status": "queued", "stage": "prepare", "created_at": "2026-11-22T14:00:00Z",
        "started_at": None, "finished_at": None, "attempts": 1, "progress": UNKNOWN_PROGRESS,
        "data": dict.fromkeys(("rows", "rows_refused", "tokens", "trained_tokens", "rows_cut", "packed_rows")),
        "metrics": dict.fromkeys(("train_loss", "eval_loss", "eval_loss_base")), "memory": UNKNOWN_MEMORY,
        "stages": [make_stage("prepare", "queued")], "error": None,
        "spec": JobSpec.model_validate(SPEC).model_dump(mode="json"), "labels": {}, "artifacts": [],
    }  # fmt: skip
    return copy.deepcopy(job | changes)


def make_stage(name, status, **changes):
    unknown = dict.fromkeys(("attempt", "duration_seconds", "peak_host_bytes", "peak_device_bytes"))
    return {"name": name, "status": status} | unknown | changes


@pytest.fixture
def finished():
    return make_job(
        status="succeeded",
        started_at="2026-11-22T14:00:01.5Z",
        finished_at="2026-11-22T14:10:02Z",
        progress={
            "step": 50,
            "total_steps": 50,
            "percent": 100.0,
            "epoch": 0.08,
            "tokens_seen": 41860,
            "trained_tokens": 10400,
        },
        data={"rows": 9950, "rows_refused": 0, "tokens": 520000, "trained_tokens": 130000, "rows_cut": 0, "packed_rows": 4937},
        metrics={"train_loss": 0.4, "eval_loss": 0.02, "eval_loss_base": 4.7},
        memory={
            "device": "Tesla T4",
            "device_total_bytes": 15828320256,
            "start_reserved_bytes": 2**30,
            "peak_reserved_bytes": 2362232013,
            "training_reserved_bytes": 1288490189,
            "peak_percent": 14.924,
            "training_percent": 8.14,
        },
        stages=[make_stage("train", "succeeded", attempt=1, duration_seconds=460.2, peak_host_bytes=3 * 2**30)],
        artifacts=[
            {
                "name": "gguf/experiment-2-q8_0.gguf",
                "kind": "gguf",
                "bytes": 144811936,
                "sha256": "ab" * 32,
                "url": "http://127.0.0.1:8000/v1/jobs/job_1/artifacts/gguf/experiment-2-q8_0.gguf",
            }
        ],
    )


def build(job, *, train=None, prepare=None, points=(), checkpoints=(), events=()):
    values = {name: values for name, values in (("prepare", prepare), ("train", train)) if values}
    return report.build(job, stage_values=values, points=list(points), checkpoints=list(checkpoints), events=list(events))


def cells(text):
    """The rows of all tables, by their first cell."""
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def headings(text):
    return re.findall(r"^## (.*)$", text, re.M)


def test_a_finished_job_tells_what_the_author_wrote_by_hand(finished):
    text = report.render(build(finished, train=TRAIN, points=POINTS, checkpoints=CHECKPOINTS))
    assert headings(text) == HEADINGS
    assert "What do 50 steps teach?" in text
    rows = cells(text)
    assert rows["Batch size x accumulation"] == ["2 x 4 = 8 rows a step"]
    assert rows["Optimizer steps"] == ["50"]
    assert rows["Learning rate"] == ["0.001, linear, warm-up steps: 5"]
    assert rows["LoRA"] == ["r 16, alpha 16, dropout 0, lora"]
    assert rows["Method"] == ["sft, base weights held as nf4"]
    assert rows["Precision"] == ["fp32, attention sdpa"]
    assert rows["Training"] == ["442.1 s (7.37 minutes)"]
    assert rows["Whole job"] == ["600.5 s (10.01 minutes)"]
    assert rows["Reserved at the start"] == ["1.000 GB"]
    assert rows["Reserved at the peak"] == ["2.200 GB (14.9 %)"]
    assert rows["Reserved for training"] == ["1.200 GB (8.1 %)"]
    assert rows["Tokens seen"] == ["41,860, 94.68 a second"]
    assert rows["First training loss, step 1"] == ["5"]
    assert rows["Last training loss, step 50"] == ["0.1"]
    assert rows["Held-out loss, base → tuned"] == ["4.7 → 0.02 (-99.6 %)"]
    assert rows["Exact answers, before → after"] == ["0 → 49 of 50"]
    assert rows["gguf/experiment-2-q8\\_0.gguf"] == ["gguf", "144,811,936 bytes, 0.135 GB", f"`{'ab' * 32}`"]
    assert sum("Row " in row for row in rows) == 5


def test_the_data_and_its_template_are_in_the_report(finished):
    made = build(finished, prepare={"chat_template": TEMPLATE, "report": DATA})
    rows = cells(report.render(made))
    assert rows["Chat template"] == ["chatml, the model's own, SHA-256 abababababab…; stop tokens 2"]
    assert rows["Data checks"] == ["7 duplicates (lines 3, 5, 8, 9, 10 …); 1 cut (lines 4); 1,200 tokens lost"]
    assert made["setup"]["data_report"] == DATA
    clean = DATA | {"duplicates": 0, "rows_cut": 0, "tokens_lost": 0}
    given = build(finished, prepare={"chat_template": TEMPLATE | {"source": "default", "family": "plain"}, "report": clean})
    assert cells(report.render(given))["Data checks"] == ["nothing found"]
    assert "which had none" in cells(report.render(given))["Chat template"][0]
    unknown = cells(report.render(build(finished)))
    assert unknown["Chat template"] == unknown["Data checks"] == ["–"]


def test_the_json_form_holds_the_numbers(finished):
    data = json.loads(json.dumps(build(finished, train=TRAIN, points=POINTS, checkpoints=CHECKPOINTS), allow_nan=False))
    performance = data["performance"]
    assert performance["train_seconds"] == 442.125
    assert performance["samples"] == 400
    assert performance["samples_per_second"] == pytest.approx(400 / 442.125)
    assert performance["tokens_per_second"] == pytest.approx(41860 / 442.125)
    assert data["outcomes"]["held_out"]["perplexity_base"] == pytest.approx(math.exp(4.7))
    assert data["outcomes"]["loss"] == {"first_step": 1, "first": 5.0, "last_step": 50, "last": 0.1, "mean": 0.4}
    assert len(data["outcomes"]["samples"]["rows"]) == 20


def test_what_was_measured_on_held_out_rows_and_which_adapter_was_kept(finished):
    finished["metrics"] |= {
        "eval_accuracy_base": 0.25,
        "eval_accuracy": 0.875,
        "eval_stop_probability_base": 0.5,
        "eval_stop_probability": 0.75,
    }
    text = report.render(build(finished, train=TRAIN | {"best_step": 40, "stopped_early": True}))
    rows = cells(text)
    assert rows["Held-out accuracy, base → tuned"] == ["0.25 → 0.875"]
    assert rows["Probability of stopping where due, base → tuned"] == ["0.5 → 0.75"]
    assert "Training was stopped early; the adapter is that of step 40, with the lowest held-out loss." in text
    assert "stopped early" not in report.render(build(finished, train=TRAIN | {"best_step": 50, "stopped_early": False}))


def test_a_job_that_learned_preferences_tells_its_rewards(finished):
    finished["spec"] |= {"method": "dpo", "preference": {"beta": 0.2}}
    finished["metrics"] |= {
        "reward_margin": 2.5,
        "reward_accuracy": 0.875,
        "eval_reward_margin_base": 0.0,
        "eval_reward_margin": 1.25,
        "eval_reward_accuracy_base": 0.5,
        "eval_reward_accuracy": 0.75,
    }
    rows = cells(report.render(build(finished, train=TRAIN)))
    assert rows["Method"] == ["dpo with beta 0.2, base weights held as nf4"]
    assert rows["Rows"] == ["4,937 pairs of answers, each with its prompt up to 128 tokens"]
    assert rows["Loss on"] == ["chosen against rejected answers"]
    assert (rows["Reward margin, last step"], rows["Reward accuracy, last step"]) == (["2.5"], ["0.875"])
    assert rows["Held-out reward margin, before → after"] == ["0 → 1.25"]
    assert rows["Held-out reward accuracy, before → after"] == ["0.5 → 0.75"]
    assert rows["Held-out perplexity, base → tuned"] == ["– → –"]


def test_what_is_not_known_is_a_dash_and_never_zero():
    waiting = build(make_job(spec=JobSpec.model_validate(SPEC | {"purpose": None}).model_dump(mode="json")))
    text = report.render(waiting)
    assert headings(text) == HEADINGS
    assert "## Purpose\n\nNot stated.\n" in text
    rows = cells(text)
    for name in ("Training", "Whole job", "Reserved at the peak", "Mean training loss", "Exact answers, before → after"):
        assert rows[name] == ["–"]
    assert rows["Samples"] == ["– trained on, – held out, – refused, – cut"]
    assert rows["Device"] == ["unknown"]
    assert not re.search(r"\b0(\.0+)? (GB|s)\b", text)
    assert waiting["performance"]["tokens_per_second"] is None


def test_a_measured_zero_is_shown_as_zero(finished):
    finished["metrics"]["eval_loss"] = 0.0
    finished["data"]["rows_refused"] = 0
    rows = cells(report.render(build(finished, train=TRAIN)))
    assert rows["Held-out loss, base → tuned"] == ["4.7 → 0 (-100.0 %)"]
    assert "0 refused" in rows["Samples"][0]


def test_a_failed_job_says_why_and_keeps_what_it_measured():
    error = {
        "code": "nan_loss",
        "message": "The loss became NaN at step 7.",
        "hint": "Lower training.learning_rate.",
        "patch": None,
    }
    job = make_job(status="failed", error=error, progress=UNKNOWN_PROGRESS | {"step": 6, "total_steps": 50})
    data = build(job, points=POINTS[:6])
    text = report.render(data)
    assert headings(text) == HEADINGS
    assert "The job failed: nan\\_loss. The loss became NaN at step 7. Lower training.learning\\_rate." in text
    assert data["performance"]["steps"] == 6
    assert data["outcomes"]["loss"]["mean"] == pytest.approx(sum(5.0 / step for step in range(1, 7)) / 6)
    assert data["outcomes"]["loss"]["last_step"] == 6


def test_files_are_told_with_what_was_found_of_them(finished):
    figures = {"kl": 0.0123, "most_kl": 0.05, "top1": 0.98, "perplexity": 7.25, "reference_perplexity": 7.2}
    right = figures | {"passed": True, "problems": []}
    finished["artifacts"][0]["verification"] = right
    found = build(finished)
    assert found["outcomes"]["verified"] == [{"name": "gguf/experiment-2-q8_0.gguf", "offered": True} | right]
    assert cells(report.render(found))["gguf/experiment-2-q8\\_0.gguf"][:4] == ["0.0123", "0.05", "0.98", "7.2 → 7.25"]

    wrong = right | {"kl": 9.5, "passed": False, "problems": ["it is far off"]}
    data = {"code": "verification_failed", "artifact": "gguf/x-q4_k_m.gguf", "verification": wrong}
    event = {"type": "job.warning", "created_at": "2026-11-22T10:00:00Z", "message": "x is kept aside.", "data": data}
    error = {"code": "verification_failed", "message": "x is not it.", "hint": None}
    failed = build(make_job(status="failed", error=error), events=[event])
    assert failed["outcomes"]["verified"] == [{"name": "gguf/x-q4_k_m.gguf", "offered": False} | wrong]
    row = cells(report.render(failed))["gguf/x-q4\\_k\\_m.gguf"]
    assert (row[0], row[-1]) == ("9.5", "no, it is kept aside: it is far off")


def test_a_resumed_job_tells_where_it_went_on(finished):
    finished["attempts"] = 2
    events = [
        {"type": "job.started", "created_at": "2026-11-22T14:00:01Z", "message": "The job started."},
        {"type": "job.retrying", "created_at": "2026-11-22T14:05:00Z", "message": "Stage train was lost; attempt 2 follows."},
    ]
    text = report.render(build(finished, train=TRAIN | {"resumed_from_step": 20}, checkpoints=CHECKPOINTS, events=events))
    assert "- Attempts of a stage at most: 2." in text
    assert "went on from step 20" in text
    assert "- 2026-11-22T14:05:00Z: Stage train was lost; attempt 2 follows." in text
    assert "The job started." not in text
    assert cells(text)["50"] == ["0.055 GB", "2026-11-22T14:07:40Z", "yes"]


def test_users_text_stays_text(finished):
    finished["name"] = "a *bold* | name"
    finished["labels"] = {"team": "x|y <b>"}
    finished["spec"]["purpose"] = "Why?\n## Outcomes\n1. <script>alert(1)</script>\n| a | b |"
    samples = {"exact_before": 0, "exact_after": 0, "count": 1}
    row = {
        "prompt": "?",
        "question": "a|b\n## Setup\n`c`",
        "reference": "x" * 2000,
        "before": "",
        "after": "[link](javascript:x)",
    }
    text = report.render(build(finished, train=TRAIN | {"samples": samples | {"rows": [row]}}))
    assert headings(text) == HEADINGS
    assert "# Experiment report: a \\*bold\\* \\| name" in text
    assert "\\## Outcomes\n1\\. \\<script\\>" in text
    prompt = next(line for line in text.splitlines() if line.startswith("| a\\|b"))
    assert prompt.startswith("| a\\|b ## Setup \\`c\\` | xxx")
    assert prompt.endswith("x … | (nothing) | \\[link\\](javascript:x) |")
    assert cells(text)["Labels"] == ["team=x\\|y \\<b\\>"]


def test_a_data_set_of_the_hub_is_named_with_its_revision():
    spec = SPEC | {"dataset": {"hub": {"repo": "mlabonne/FineTome-100k", "revision": "c2343c1"}}}
    job = make_job(spec=JobSpec.model_validate(spec).model_dump(mode="json"))
    assert cells(report.render(build(job)))["Data set"] == ["mlabonne/FineTome-100k train at c2343c1, auto"]
