"""The picture of a job's statuses is drawn from the map: `python tests/app/test_states.py` draws it anew."""

from pathlib import Path

from app.jobs.states import TRANSITIONS, EventType, JobStatus

PAGE = Path(__file__).parents[2] / "docs" / "states.md"

TEXT = """# The life of a job

Drawn from `TRANSITIONS` in app/jobs/states.py. Each arrow names the event that the step writes, in the same transaction.

```mermaid
stateDiagram-v2
{arrows}
```

`succeeded`, `failed` and `cancelled` end a job; only its user takes it out of the last two, by a retry. While a job runs, its
`stage` says where it is. The attempts at a stage have statuses of their own; one that was lost or given back is followed by
another, and the job stays `running`.
"""


def draw() -> str:
    arrows = [f"    [*] --> {JobStatus.QUEUED}: {EventType.JOB_QUEUED}"]
    for status, following in TRANSITIONS.items():
        arrows += [f"    {status} --> {after}: {event}" for after, event in following.items()]
        if status.is_terminal:
            arrows.append(f"    {status} --> [*]")
    return TEXT.format(arrows="\n".join(arrows))


def test_the_picture_is_that_of_the_map() -> None:
    assert PAGE.read_text() == draw()


def test_every_status_can_be_reached_and_left_or_is_an_end() -> None:
    reached = {after for following in TRANSITIONS.values() for after in following}
    assert reached == set(JobStatus)
    assert {status for status in JobStatus if not set(TRANSITIONS[status]) - {JobStatus.QUEUED}} >= {
        status for status in JobStatus if status.is_terminal
    }


if __name__ == "__main__":
    PAGE.write_text(draw())
