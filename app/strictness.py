"""What this build does not act on is refused, never accepted and ignored: unknown query parameters."""

from fastapi import Request

from app.errors import Detail, InvalidSpec
from app.suggestions import suggest


async def refuse_unknown_query(request: Request) -> None:
    """The known parameters are those of the published schema, where `label.{key}` stands for any name that begins so."""
    if not request.query_params:
        return
    method = "get" if request.method == "HEAD" else request.method.lower()
    operation = request.app.openapi()["paths"].get(request.scope["route"].path_format, {}).get(method, {})
    known = [parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"]
    prefixes = tuple(name.partition("{")[0] for name in known if "{" in name)
    unknown = [name for name in request.query_params if name not in known and not (prefixes and name.startswith(prefixes))]
    if unknown:
        raise InvalidSpec.of(
            [Detail(name, f"{name}: there is no such query parameter; {suggest(name, known)}") for name in unknown]
        )
