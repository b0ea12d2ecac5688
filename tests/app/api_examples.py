"""What docs/api.md shows: a request for each operation that needs more than its path, and one for each error code."""

MODEL = "smollm2-135m-instruct"
CONVERSATION = '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}]}\n'

REQUESTS = {
    "POST /v1/jobs": {"json": {"base_model": MODEL, "dataset": {"file": "{file_id}"}, "labels": {"team": "nlp"}}},
    "GET /v1/jobs": {"query": {"status": "succeeded", "label.team": "nlp", "limit": 1}},
    "POST /v1/jobs/{job_id}/retry": {"json": {"training": {"learning_rate": 0.0001}}},
    "GET /v1/jobs/{job_id}/metrics": {"query": {"max_points": 100}},
    "GET /v1/jobs/{job_id}/logs": {"query": {"stage": "train", "tail": 20}},
    "POST /v1/files": {"file": ("rows.jsonl", CONVERSATION)},
    "GET /v1/files/{file_id}/preview": {"query": {"base_model": MODEL, "row": 0}},
    "POST /v1/fine_tuning/jobs": {
        "json": {
            "model": MODEL,
            "training_file": "{file_id}",
            "suffix": "first",
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
            "exports": [{"kind": "gguf", "quantization": "q8_0"}],
        }
    },
    "GET /v1/fine_tuning/jobs": {"query": {"metadata[team]": "nlp", "limit": 1}},
    "PUT /v1/secrets/{name}": {"json": {"value": "hf_of_mine"}},
    "POST /v1/keys": {"json": {"name": "ci", "scopes": ["read", "write"]}},
    "POST /v1/webhook_endpoints": {"json": {"url": "https://hooks.example.com/", "name": "first"}},
    "POST /v1/webhook_endpoints/{endpoint_id}": {"json": {"enabled": True}},
    "PATCH /v1/webhook_endpoints/{endpoint_id}": {"json": {"event_types": ["fine_tuning.job.failed"]}},
    "POST /v1/webhook_endpoints/{endpoint_id}/rotate_secret": {"json": {"keep_old_secret_active_for_24_hours": True}},
    "POST /v1/webhook_endpoints/{endpoint_id}/test": {"json": {"event_type": "fine_tuning.job.succeeded"}, "status": 400},
    "GET /v1/webhook_deliveries": {"query": {"limit": 1}},
    "POST /v1/jobs/estimate": {"status": 422},
}
"""`status` where it is not one of success."""

STATE_OF = {"cancel": "queued", "pause": "queued", "resume": "paused", "retry": "failed"}
"""The status of the job that a call is shown on, by the last word of its path; others are shown on one that succeeded."""

NEW_JOB = {"base_model": MODEL, "dataset": {"file": "{file_id}"}}
ERRORS = {
    "invalid_request": ("POST", "/v1/jobs", {"text": "{"}),
    "unauthorized": ("GET", "/v1/jobs", {"key": "tsk_wrong"}),
    "forbidden": ("DELETE", f"/v1/models/{MODEL}", {}),
    "not_found": ("GET", "/v1/nothing", {}),
    "job_not_found": ("GET", "/v1/jobs/job_unknown", {}),
    "file_not_found": ("GET", "/v1/files/file-unknown", {}),
    "artifact_not_found": ("GET", "/v1/jobs/{job_id}/artifacts/gguf/other.gguf", {}),
    "model_not_found": ("GET", "/v1/models/unknown", {}),
    "secret_not_found": ("DELETE", "/v1/secrets/unknown", {}),
    "key_not_found": ("DELETE", "/v1/keys/key_unknown", {}),
    "method_not_allowed": ("PUT", "/v1/jobs", {}),
    "job_ended": ("POST", "/v1/jobs/{job_id}/cancel", {}),
    "job_not_paused": ("POST", "/v1/jobs/{queued}/resume", {}),
    "job_not_failed": ("POST", "/v1/jobs/{job_id}/retry", {}),
    "job_running": ("DELETE", "/v1/jobs/{running}", {}),
    "job_in_use": ("DELETE", "/v1/jobs/{job_id}", {"before": ("/v1/jobs", NEW_JOB | {"from_job": "{job_id}"})}),
    "file_in_use": ("DELETE", "/v1/files/{file_id}", {"before": ("/v1/jobs", NEW_JOB)}),
    "webhook_endpoint_not_found": ("GET", "/v1/webhook_endpoints/wh_unknown", {}),
    "webhook_delivery_not_found": ("POST", "/v1/webhook_deliveries/dlv_unknown/redeliver", {}),
    "webhook_endpoint_disabled": ("POST", "/v1/webhook_deliveries/{undelivered}/redeliver", {}),
    "webhook_test_failed": ("POST", "/v1/webhook_endpoints/{endpoint_id}/test", {}),
    "rate_limited": ("GET", "/v1/files", {"settings": {"requests_per_minute": 1}}),
    "quota_exceeded": ("POST", "/v1/jobs", {"json": NEW_JOB, "settings": {"max_open_jobs": 0}}),
    "idempotency_conflict": ("POST", "/v1/jobs", {"json": NEW_JOB, "idempotency": ("nightly-7", NEW_JOB | {"priority": 1})}),
    "too_large": ("POST", "/v1/jobs", {"text": "[" + "0," * 600_000}),
    "range_not_satisfiable": (
        "GET",
        "/v1/jobs/{job_id}/artifacts/gguf/first-q8_0.gguf",
        {"headers": {"range": "bytes=1000-"}},
    ),
    "invalid_spec": ("POST", "/v1/jobs", {"json": NEW_JOB | {"training": {"epochs": 0}}}),
    "not_available": ("POST", "/v1/jobs", {"json": NEW_JOB | {"gpus": 2}}),
    "dataset_not_found": ("POST", "/v1/jobs", {"json": {"base_model": MODEL, "dataset": {"file": "file-unknown"}}}),
    "dataset_invalid": ("POST", "/v1/jobs", {"json": {"base_model": MODEL, "dataset": {"file": "{broken}"}}}),
    "dataset_empty": ("POST", "/v1/jobs", {"json": {"base_model": MODEL, "dataset": {"file": "{refused}"}}}),
}
"""The request that each code answers."""

NOT_SHOWN = {
    "artifact_not_verified",
    "conflict",
    "too_many_endpoints",
    "idempotency_in_flight",
    "model_gated",
    "hub_unauthorized",
    "model_unsupported",
    "internal",
    "unavailable",
    "disk_full",
}
"""They need a worker, another service, a full disk, a moment, or a hundred of something: other tests bring them about."""
