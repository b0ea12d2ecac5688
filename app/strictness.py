"""What this build does not act on is refused, never accepted and ignored: unknown query parameters."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.errors import Detail, InvalidSpec
from app.suggestions import suggest


class StrictRoute(APIRoute):
    """Looks at the query before FastAPI solves anything."""

    refusal_status = InvalidSpec.status
    """Of a request that is well formed and wrong."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            if request.scope["query_string"]:
                refuse_unknown_query(request)
            return await handle(request)

        return handle_strictly


class OpenAIRoute(StrictRoute):
    """A route in OpenAI's shape: what is 422 elsewhere is 400 there."""

    refusal_status = 400


def refuse_unknown_query(request: Request) -> None:
    """The known parameters are those of the published schema, where `label.{key}` stands for any name that begins so."""
    method = "get" if request.method == "HEAD" else request.method.lower()
    operation = request.app.openapi()["paths"].get(request.scope["route"].path_format, {}).get(method, {})
    known = [parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"]
    prefixes = tuple(name.partition("{")[0] for name in known if "{" in name)
    unknown = [name for name in request.query_params if name not in known and not (prefixes and name.startswith(prefixes))]
    if unknown:
        raise InvalidSpec.of(
            [Detail(name, f"{name}: there is no such query parameter; {suggest(name, known)}") for name in unknown]
        )
