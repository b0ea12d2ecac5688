"""One series of points out of the chunks that a job's attempts wrote."""

from collections.abc import Iterable
from typing import Any, TypeVar

from app.models import MetricChunk

Point = TypeVar("Point")


def join_chunks(chunks: Iterable[MetricChunk]) -> list[dict[str, Any]]:
    """Points by step. Where an attempt takes up again at an earlier step, what was recorded from there on is dropped.

    A step may come in parts: its loss, and later its evaluation. The parts are laid over each other.
    """
    points: dict[int, dict[str, Any]] = {}
    attempt = None
    for chunk in chunks:
        if chunk.stage_run_id != attempt and chunk.points:
            attempt = chunk.stage_run_id
            first = min(point["step"] for point in chunk.points)
            points = {step: point for step, point in points.items() if step < first}
        for point in chunk.points:
            known = {key: value for key, value in point.items() if value is not None}
            points[point["step"]] = points.get(point["step"], {}) | known
    return [points[step] for step in sorted(points)]


def thin(points: list[Point], max_points: int) -> list[Point]:
    """At most `max_points` of them, evenly spaced, the last one always among them."""
    count = len(points)
    if count <= max_points:
        return points
    return [points[(place + 1) * count // max_points - 1] for place in range(max_points)]
