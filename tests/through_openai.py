"""Looks at a job that has succeeded with OpenAI's client: `through_openai.py URL JOB GGUF`, the last as downloaded before."""

import sys
from pathlib import Path
from typing import Any

from openai import HttpxBinaryResponseContent, OpenAI

url, job_id, gguf_path = sys.argv[1:]
with OpenAI(base_url=f"{url}/v1", api_key="any") as client:
    [job] = client.fine_tuning.jobs.list()
    assert (job.id, job.status, job.model) == (job_id, "succeeded", "smollm2-135m-instruct")
    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    assert job.training_file in [file.id for file in client.files.list(purpose="fine-tune")]
    assert job.trained_tokens and job.hyperparameters.batch_size != "auto"
    assert next(iter(client.fine_tuning.jobs.list_events(job.id))).data["event"] == "job.succeeded"
    assert len(client.files.content(job.result_files[0]).text.splitlines()) > 1
    artifacts = client.get(f"/jobs/{job.id}", cast_to=dict[str, Any])["artifacts"]
    [gguf] = [artifact for artifact in artifacts if artifact["kind"] == "gguf"]
    assert client.get(gguf["url"], cast_to=HttpxBinaryResponseContent).read() == Path(gguf_path).read_bytes()
