"""The one place where errors become answers. Every body has the shape of `TunesmithError.to_json`."""

import logging
import sqlite3
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from app.disk import MAKE_SPACE, is_full
from app.errors import Detail, DiskFull, InvalidRequest, InvalidSpec, TunesmithError
from app.suggestions import suggest

log = logging.getLogger(__name__)

CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 416: "range_not_satisfiable"}
MESSAGE_OF_STATUS = {
    404: "There is nothing at this address. GET /openapi.json lists what there is.",
    405: "This address does not take that method. The Allow header lists those that it takes.",
    413: "The request is larger than this address takes.",
    416: "The file ends before the part that Range asks for. The Content-Range header tells its size.",
}


MESSAGE_OF_DETAIL = {
    "There was an error parsing the body": "The body cannot be read as JSON: it is nested too deep, or is not in UTF-8.",
}
"""What FastAPI leaves unexplained."""


class ErrorBody(BaseModel):
    message: str
    """What is wrong and what to do."""
    type: str
    param: str | None
    """The JSON path of the field at fault."""
    code: str | None
    """From the closed list in docs/errors.md."""
    details: list[dict[str, Any]] | None = None
    """Everything that is wrong, where there is more to say: message, param, code, and patch where one helps."""


class ErrorAnswer(BaseModel):
    error: ErrorBody


ERROR_CONTENT = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}}}


def install(app: FastAPI) -> None:
    app.add_exception_handler(TunesmithError, answer_domain_error)
    app.add_exception_handler(RequestValidationError, answer_validation_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    for kind in (OSError, OperationalError, sqlite3.OperationalError):
        app.add_exception_handler(kind, answer_full_disk)


def render(error: TunesmithError, request: Request | None = None) -> JSONResponse:
    status = error.status
    if status == InvalidSpec.status and request is not None:
        status = getattr(request.scope.get("route"), "refusal_status", status)
    return JSONResponse(error.to_json(), status_code=status, headers=error.headers)


def answer_domain_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TunesmithError)
    return render(error, request)


def answer_full_disk(request: Request, error: Exception) -> JSONResponse:
    """Other failures of the disk and of the database stay what they are: 500."""
    if not is_full(error, request.app.state.settings.root):
        raise error
    return render(DiskFull(f"The service's disk is full. {MAKE_SPACE}."))


def answer_http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = MESSAGE_OF_STATUS.get(error.status_code) or MESSAGE_OF_DETAIL.get(error.detail, str(error.detail))
    problem = InvalidRequest(message, code=CODE_OF_STATUS.get(error.status_code))
    return JSONResponse(problem.to_json(), status_code=error.status_code, headers=dict(error.headers or {}))


def answer_validation_error(request: Request, error: Exception) -> JSONResponse:
    """Malformed JSON is 400; a field of the wrong name, type or value is 422 with its path, all of them in `details`."""
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if problems[0]["type"] == "json_invalid":
        where, why = problems[0]["loc"][-1], problems[0]["ctx"]["error"]
        return render(InvalidRequest(f"The body is not JSON: {why} at character {where}."))
    schema = find_body_schema(request)
    details = [describe(problem, request.app.openapi(), schema) for problem in problems]
    return render(InvalidSpec.of(details), request)


def find_body_schema(request: Request) -> dict[str, Any]:
    """The published schema of this request's JSON body; empty where there is none."""
    operation = request.app.openapi()["paths"].get(request.scope["route"].path_format, {}).get(request.method.lower(), {})
    return operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})


def describe(problem: dict[str, Any], openapi: dict[str, Any], schema: dict[str, Any]) -> Detail:
    source, *location = problem["loc"]
    path, names = walk(location, openapi, schema) if source == "body" else (list(location), [])
    param = format_path(path) or source
    return Detail(param, f"{param}: {explain(problem, names)}")


def explain(problem: dict[str, Any], names: list[str]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"there is no such field; {suggest(str(problem['loc'][-1]), names)}"
    if problem["type"] == "missing":
        return "this field is required."
    if problem["type"] == "model_attributes_type" and len(problem["loc"]) == 1:
        return "a JSON object is needed, sent with Content-Type: application/json."
    message = problem["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:] + "."


def walk(location: list[Any], openapi: dict[str, Any], schema: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """The JSON path of a pydantic location, which also names union members, and the fields known at its last step."""
    path: list[Any] = []
    names: list[str] = []
    for step in location:
        choices = expand(schema, openapi)
        names = sorted({name for choice in choices for name in choice.get("properties", {})})
        if isinstance(step, int):
            following = [choice["items"] for choice in choices if "items" in choice]
        elif tagged := [choice for choice in choices if is_tagged(choice, step)]:
            schema = tagged[0]
            continue
        elif names_alternative(choices, step):
            continue
        else:
            following = [choice["properties"][step] for choice in choices if step in choice.get("properties", {})]
        path.append(step)
        schema = {"anyOf": following}
    return path, names


def expand(schema: dict[str, Any], openapi: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas behind references and alternatives."""
    if "$ref" in schema:
        return expand(openapi["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]], openapi)
    alternatives = schema.get("anyOf", []) + schema.get("oneOf", [])
    return [found for one in alternatives for found in expand(one, openapi)] if alternatives else [schema]


def names_alternative(choices: list[dict[str, Any]], step: str) -> bool:
    """Whether the step is no field but says which of several types was tried: a model by its name, or what has no fields."""
    return any(choice.get("title") == step for choice in choices) or not any(
        choice.get("type") == "object" for choice in choices
    )


def is_tagged(choice: dict[str, Any], tag: str) -> bool:
    return any(field.get("const") == tag for field in choice.get("properties", {}).values())


def format_path(path: list[Any]) -> str:
    """`["exports", 0, "kind"]` is `exports[0].kind`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text
