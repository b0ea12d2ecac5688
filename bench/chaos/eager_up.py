"""`tunesmith up` without most of its back-off, which would otherwise be what a run full of kills waits for."""

from app import children, up

children.LONGEST_PAUSE_SECONDS = 0.5
up.main()
