"""Which refusals an operation of the published schema is documented with. A `4XX` for whatever comes would promise nothing, and
hide from `tests/test_fuzz.py` what nobody thought of."""

from collections.abc import Iterable
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from app.error_handlers import ERROR_CONTENT
from app.keys.scopes import find_scope
from app.strictness import OpenAIRoute

WILDCARD = "4XX"
"""With this FastAPI documents no 422 of its own."""
DESCRIPTIONS = {
    400: "The request, or a field of it, is wrong or not available in this version.",
    401: "A valid key is needed.",
    403: "The key, or the place that the request comes from, does not allow it.",
    404: "There is no such thing, or it is another tenant's.",
    405: "An empty or odd name in the address makes it another address.",
    409: "The state of something forbids it.",
    413: "The body is too large.",
    422: "A field is wrong, or not available in this version.",
    429: "Too many requests, or a quota is used up.",
    500: "The server failed; its log has the request's id.",
    507: "The server's disk is full.",
}


def announce(routes: Iterable[BaseRoute]) -> None:
    """Keeps a place for them in the schema that FastAPI will make."""
    for route in documented(routes):
        route.responses.setdefault(WILDCARD, {})


def document(schema: dict[str, Any], routes: Iterable[BaseRoute]) -> None:
    """Puts them into the schema, in the place of the wildcard."""
    answers = {str(status): {"description": text, "content": ERROR_CONTENT} for status, text in DESCRIPTIONS.items()}
    schema["components"]["responses"] = answers
    for route in documented(routes):
        for method in route.methods or ():
            operation = schema["paths"][route.path_format][method.lower()]
            add_refusals(operation["responses"], find_statuses(method, route))


def documented(routes: Iterable[BaseRoute]) -> list[APIRoute]:
    return [route for route in routes if isinstance(route, APIRoute) and route.include_in_schema]


def add_refusals(responses: dict[str, Any], statuses: set[int]) -> None:
    responses.pop(WILDCARD, None)
    for status in sorted(statuses):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/{status}"})


def find_statuses(method: str, route: APIRoute) -> set[int]:
    statuses = {400, 403, 500}
    if find_scope(method, route.path_format) is not None:
        statuses |= {401, 429}
    if not isinstance(route, OpenAIRoute):
        statuses.add(422)
    if "{" in route.path_format:
        statuses |= {404, 405}
    if method != "GET":
        statuses |= {409, 413, 507}
    return statuses
