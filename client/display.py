"""How jobs, events, files and workers look in a terminal; plain lines of the same text elsewhere."""

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "paused": "yellow",
    "processed": "green",
    "error": "red",
}
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def table(console: Console, columns: list[str], rows: list[list[Any]], *, empty: str) -> None:
    """Columns of text; in a pipe, tab-separated lines that `cut` and `awk` read."""
    if not console.is_terminal:
        for row in rows:
            print(*("" if cell is None else cell for cell in row), sep="\t", file=console.file)
        return
    if not rows:
        console.print(empty)
        return
    grid = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        grid.add_row(*(Text("–" if cell is None else str(cell), style=STYLES.get(str(cell), "")) for cell in row))
    console.print(grid)


def jobs(console: Console, data: list[dict[str, Any]]) -> None:
    rows = [
        [
            job["id"],
            job["status"],
            job["stage"],
            percent(job),
            job["spec"]["base_model"],
            moment(job["created_at"]),
            job["name"],
        ]
        for job in data
    ]
    columns = ["JOB", "STATUS", "STAGE", "DONE", "BASE MODEL", "CREATED", "NAME"]
    table(console, columns, rows, empty="No jobs yet. Submit one with `tunesmith submit JOB.json`.")


def job(console: Console, data: dict[str, Any]) -> None:
    facts = {
        "job": data["id"],
        "name": data["name"],
        "status": data["status"],
        "base model": data["spec"]["base_model"],
        "created": moment(data["created_at"]),
        "started": moment(data["started_at"]),
        "finished": moment(data["finished_at"]),
        "progress": progress(data),
    }
    for name, value in facts.items():
        if value:
            line(console, f"{name:<11}{value}", style=STYLES.get(value))
    rows = [[run["name"], run["status"], run["attempt"], seconds(run["duration_seconds"])] for run in data["stages"]]
    line(console, "")
    table(console, ["STAGE", "STATUS", "ATTEMPT", "TIME"], rows, empty="No stage has run yet.")
    if data["artifacts"]:
        line(console, "")
        artifacts(console, data["artifacts"])
    failure(console, data)


def artifacts(console: Console, data: list[dict[str, Any]]) -> None:
    rows = [[item["name"], item["kind"], size(item["bytes"]), item["sha256"]] for item in data]
    table(console, ["ARTIFACT", "KIND", "SIZE", "SHA-256"], rows, empty="No artifacts yet.")


def files(console: Console, data: list[dict[str, Any]]) -> None:
    rows = [[file["id"], file["status"], size(file["bytes"]), file["filename"]] for file in data]
    table(
        console, ["FILE", "STATUS", "SIZE", "NAME"], rows, empty="No files yet. Upload one with `tunesmith files upload PATH`."
    )


def file_report(console: Console, data: dict[str, Any]) -> None:
    if "rows" not in data:
        line(console, "No worker has read the file yet; ask again in a moment.")
        return
    line(console, f"{data['rows']} rows, {data['rows_refused']} refused, format {data['format']}")
    rows = [[item["line"], item["code"], item["reason"]] for item in data["refusals"]]
    table(console, ["LINE", "CODE", "REASON"], rows, empty="Every row can be trained on.")


def workers(console: Console, data: list[dict[str, Any]]) -> None:
    rows = [
        [
            worker["id"],
            ",".join(worker["queues"]),
            (worker["device"] or {}).get("name"),
            worker["host"],
            worker["pid"],
            task(worker),
        ]
        for worker in data
    ]
    table(console, ["WORKER", "QUEUES", "DEVICE", "HOST", "PID", "WORKS ON"], rows, empty="No worker is alive.")


def task(worker: dict[str, Any]) -> str | None:
    """`train of job_…`"""
    stage = worker["stage"]
    return stage and f"{stage['name']} of {stage['job_id'] or stage['file_id']}"


def event(console: Console, data: dict[str, Any]) -> None:
    style = "yellow" if data["type"] in ("job.warning", "job.retrying") else STYLES.get(data["type"].rpartition(".")[2])
    line(console, f"{moment(data['created_at'], clock=True)}  {data['type']:<16} {data['message']}", style=style)


def failure(console: Console, data: dict[str, Any]) -> None:
    """What ended the job, and what to do about it."""
    error = data["error"]
    if not error:
        return
    where = f" ({error['param']})" if error.get("param") else ""
    line(console, f"\n{error['code']}{where}: {error['message']}", style="red")
    if error.get("hint"):
        line(console, error["hint"])
    line(console, f"The processes' output: tunesmith logs {data['id']}")


def line(console: Console, text: str, *, style: str | None = None) -> None:
    """One line as it is: no markup, no wrapping, no colours but `style`."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def progress(data: dict[str, Any], loss: float | None = None) -> str:
    """`train  120/600  loss 0.910  6410 tokens/s  0:20:27 left`, or the stage's own words when it has some."""
    if data["queue_position"] is not None:
        return f"waiting for a worker, place {data['queue_position']}"
    if data["status"] != "running":
        return ""
    numbers = data["progress"] or {}
    parts = [data["stage"] or ""]
    if not is_stepping(data):
        return "  ".join([*parts, numbers["message"]] if numbers.get("message") else parts)
    parts.append(f"{numbers['step']}/{numbers['total_steps']}")
    if loss is not None:
        parts.append(f"loss {loss:.3f}")
    if numbers.get("tokens_per_second"):
        parts.append(f"{numbers['tokens_per_second']:.0f} tokens/s")
    if numbers.get("eta_seconds") is not None:
        parts.append(f"{seconds(numbers['eta_seconds'])} left")
    return "  ".join(parts)


def is_stepping(data: dict[str, Any]) -> bool:
    """Whether the optimizer is at work: the stage has nothing else to say then."""
    numbers = data["progress"] or {}
    return data["stage"] == "train" and bool(numbers.get("step")) and not numbers.get("message")


def percent(data: dict[str, Any]) -> str | None:
    value = (data["progress"] or {}).get("percent")
    return None if value is None else f"{value:.0f}%"


def size(count: int | None) -> str | None:
    """Bytes with a binary unit."""
    if count is None:
        return None
    value, unit = float(count), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def seconds(duration: float | None) -> str | None:
    """`H:MM:SS`; under a minute `12.3 s`."""
    if duration is None:
        return None
    if duration < 60:
        return f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def moment(text: str | None, *, clock: bool = False) -> str | None:
    """An RFC 3339 time in the reader's own time zone."""
    if text is None:
        return None
    return datetime.fromisoformat(text).astimezone().strftime("%H:%M:%S" if clock else "%Y-%m-%d %H:%M:%S")
