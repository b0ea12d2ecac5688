"""The service's HTTP API as Python calls: every answer is the JSON that the service sent."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

DEFAULT_URL = "http://127.0.0.1:8000"
PAGE = 100


class ClientError(Exception):
    """What went wrong, as a sentence for a person."""

    def to_json(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": "client_error", "param": None, "code": None}}


class Unreachable(ClientError):
    """No answer came: nothing listens there, or the connection broke."""


class ApiError(ClientError):
    """The service refused. `code` is from its documented list, `param` the path of the field at fault."""

    def __init__(self, status: int, body: dict[str, Any]):
        super().__init__(body["message"])
        self.status = status
        self.message: str = body["message"]
        self.code: str | None = body.get("code")
        self.param: str | None = body.get("param")
        self.details: list[dict[str, Any]] = body.get("details") or []
        self.body = body

    def to_json(self) -> dict[str, Any]:
        return {"error": self.body}


class Client:
    """Calls one Tunesmith service. Every call raises ApiError for a refusal and Unreachable where no answer came."""

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None):
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url.rstrip("/")
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=httpx2.Timeout(60, connect=10))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, spec: dict[str, Any]) -> dict[str, Any]:
        return self._json("POST", "/v1/jobs", json=spec)

    def job(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", job_path(job_id))

    def jobs(self, *, limit: int = 20, status: str | None = None) -> list[dict[str, Any]]:
        """The newest jobs first."""
        return self._json("GET", "/v1/jobs", params={"limit": limit} | ({"status": status} if status else {}))["data"]

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"{job_path(job_id)}/cancel")

    def pause(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"{job_path(job_id)}/pause")

    def resume(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"{job_path(job_id)}/resume")

    def retry(self, job_id: str, overrides: dict[str, Any]) -> dict[str, Any]:
        """`overrides` are parts of the spec, laid over the job's own."""
        return self._json("POST", f"{job_path(job_id)}/retry", json=overrides)

    def delete(self, job_id: str) -> None:
        self._send("DELETE", job_path(job_id))

    def events(self, job_id: str, *, after: str | None = None) -> Iterator[dict[str, Any]]:
        """The job's events, oldest first, from the one that follows `after`."""
        while True:
            params = {"limit": PAGE} | ({"after": after} if after else {})
            page = self._json("GET", f"{job_path(job_id)}/events", params=params)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["last_id"]

    def metrics(self, job_id: str, *, max_points: int | None = None) -> list[dict[str, Any]]:
        """Points of step, time, loss and more, oldest first, thinned to about `max_points`."""
        params = {} if max_points is None else {"max_points": max_points}
        return self._json("GET", f"{job_path(job_id)}/metrics", params=params)["data"]

    def logs(self, job_id: str, *, stage: str | None = None, tail: int | None = None) -> str:
        wanted = {"stage": stage, "tail": tail}
        params = {key: value for key, value in wanted.items() if value is not None}
        return self._send("GET", f"{job_path(job_id)}/logs", params=params).text

    def artifacts(self, job_id: str) -> list[dict[str, Any]]:
        return self._json("GET", f"{job_path(job_id)}/artifacts")["data"]

    @contextmanager
    def artifact(self, job_id: str, name: str, *, start: int = 0) -> Iterator[httpx2.Response]:
        """The artifact's bytes from `start`, to be read by `iter_raw`; the answer is 206, or 200 for the whole file."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        request = self._http.build_request("GET", f"{job_path(job_id)}/artifacts/{quote(name)}", headers=headers)
        with self._reaching():
            response = self._http.send(request, stream=True)
            try:
                if response.is_error:
                    response.read()
                    raise read_error(response)
                yield response
            finally:
                response.close()

    def report(self, job_id: str) -> str:
        """The experiment report, Markdown."""
        return self._send("GET", f"{job_path(job_id)}/report", headers={"Accept": "text/markdown"}).text

    def report_data(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", f"{job_path(job_id)}/report", headers={"Accept": "application/json"})

    def upload(self, path: Path) -> dict[str, Any]:
        """Streams the file; the answer comes when the service has it whole."""
        with path.open("rb") as file:
            return self._json("POST", "/v1/files", data={"purpose": "fine-tune"}, files={"file": (path.name, file)})

    def files(self, *, limit: int = 20) -> list[dict[str, Any]]:
        return self._json("GET", "/v1/files", params={"limit": limit})["data"]

    def file_report(self, file_id: str) -> dict[str, Any]:
        """What a worker found in the file: rows, format, and each refused row's line and reason."""
        return self._json("GET", f"/v1/files/{quote(file_id, safe='')}/report")

    def secrets(self) -> list[dict[str, Any]]:
        """Names and times; no call gives a value."""
        return self._json("GET", "/v1/secrets")["data"]

    def put_secret(self, name: str, value: str) -> dict[str, Any]:
        return self._json("PUT", f"/v1/secrets/{quote(name, safe='')}", json={"value": value})

    def delete_secret(self, name: str) -> None:
        self._send("DELETE", f"/v1/secrets/{quote(name, safe='')}")

    def keys(self) -> list[dict[str, Any]]:
        return self._json("GET", "/v1/keys")["data"]

    def create_key(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Its `key` is shown here and never again."""
        return self._json("POST", "/v1/keys", json=wanted)

    def revoke_key(self, key_id: str) -> None:
        self._send("DELETE", f"/v1/keys/{quote(key_id, safe='')}")

    def webhook_endpoints(self) -> Iterator[dict[str, Any]]:
        """All of them, the newest first."""
        params: dict[str, Any] = {"limit": PAGE}
        while True:
            page = self._json("GET", "/v1/webhook_endpoints", params=params)
            yield from page["data"]
            if not page["has_more"]:
                return
            params["after"] = page["last_id"]

    def create_webhook_endpoint(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The endpoint, with its `signing_secret`, which no other answer has. `wanted`: url, name, event_types."""
        return self._json("POST", "/v1/webhook_endpoints", json=wanted)

    def test_webhook_endpoint(self, endpoint_id: str, event_type: str | None = None) -> dict[str, Any]:
        """What the receiver answers to a sample event; ApiError when it does not answer."""
        body = {"event_type": event_type} if event_type else {}
        return self._json("POST", f"/v1/webhook_endpoints/{quote(endpoint_id, safe='')}/test", json=body)

    def delete_webhook_endpoint(self, endpoint_id: str) -> None:
        self._send("DELETE", f"/v1/webhook_endpoints/{quote(endpoint_id, safe='')}")

    def webhook_deliveries(self, *, limit: int = 20, job: str | None, endpoint: str | None) -> list[dict[str, Any]]:
        """The newest first, each with its attempts."""
        wanted = {"limit": limit, "job": job, "endpoint": endpoint}
        params = {key: value for key, value in wanted.items() if value is not None}
        return self._json("GET", "/v1/webhook_deliveries", params=params)["data"]

    def redeliver_webhook(self, delivery_id: str) -> dict[str, Any]:
        return self._json("POST", f"/v1/webhook_deliveries/{quote(delivery_id, safe='')}/redeliver")

    def models(self) -> list[dict[str, Any]]:
        return self._json("GET", "/v1/models")["data"]

    def workers(self) -> list[dict[str, Any]]:
        return self._json("GET", "/v1/workers")["data"]

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return self._send(method, path, **options).json()

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        with self._reaching():
            response = self._http.request(method, path, **options)
        if response.is_error:
            raise read_error(response)
        return response

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectError as error:
            raise Unreachable(
                f"No Tunesmith answers at {self.url}. Start one with `tunesmith up`, or name its address with --url."
            ) from error
        except (httpx2.TransportError, httpx2.StreamError) as error:
            raise Unreachable(f"The connection to {self.url} broke: {error or type(error).__name__}") from error
        except httpx2.InvalidURL as error:
            raise ClientError(f"{self.url} is no address of a service: {error}") from error


def job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def read_error(response: httpx2.Response) -> ApiError:
    """The service's own error, or one made from the status when something in between answered."""
    try:
        body = response.json()["error"]
        return ApiError(response.status_code, body)
    except (json.JSONDecodeError, KeyError, TypeError):
        message = f"{response.request.url} answered {response.status_code}, but not as a Tunesmith service would."
        return ApiError(response.status_code, {"message": message, "type": "unexpected_answer", "param": None, "code": None})
