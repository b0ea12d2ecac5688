"""The list envelope, and the two query parameters of paged lists."""

from collections.abc import Sequence
from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel

Item = TypeVar("Item")

MAX_LIMIT = 100

Limit = Annotated[int, Query(ge=1, description=f"At most this many; above {MAX_LIMIT} it is clamped.")]
After = Annotated[str | None, Query(max_length=200, description="The id of the last item seen.")]


class Page(BaseModel, Generic[Item]):
    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None


def make_page(items: Sequence[Item], limit: int | None = None) -> Page[Item]:
    """A page of `limit` of the items that were fetched; fetch one more to know whether there are more. None: the whole list."""
    shown = list(items if limit is None else items[:limit])
    ids = [getattr(item, "id", None) for item in shown] or [None]
    return Page(data=shown, has_more=len(shown) < len(items), first_id=ids[0], last_id=ids[-1])
