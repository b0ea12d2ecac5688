"""The published schema is a promise: `python tests/app/test_openapi.py` writes it anew when it was changed on purpose."""

import json
from pathlib import Path

from app.main import create_app
from app.settings import Settings

SNAPSHOT = Path(__file__).with_name("openapi.json")


def published() -> dict:
    schema = create_app(Settings()).openapi()
    schema["info"]["version"] = "any"
    return schema


def test_the_published_schema_is_the_one_that_was_agreed():
    assert published() == json.loads(SNAPSHOT.read_text())


def test_every_operation_tells_what_it_does_or_is_plain_by_its_name():
    operations = [operation for methods in published()["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["tags"] for operation in operations)


def test_refusals_are_documented_by_their_statuses_in_the_error_shape():
    schema = published()
    for answer in schema["components"]["responses"].values():
        assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            refusals = {status for status in operation["responses"] if status >= "4"}
            assert all(status.isdigit() for status in refusals)
            assert {"400", "403", "500"} <= refusals
            assert "{" not in path or "404" in refusals


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(published(), indent=1, sort_keys=True) + "\n")
