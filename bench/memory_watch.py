"""How much memory of the GPU is free, seen by a process of its own, whose share does not change."""

import subprocess
import sys

PROBE = """
import sys, torch
if torch.cuda.is_available():
    torch.cuda.init()
    for _ in sys.stdin:
        print(torch.cuda.mem_get_info(0)[0], flush=True)
"""


class MemoryWatch:
    """Watches the first visible GPU. Without one `is_watching` is false and `free_bytes` is 0."""

    SLACK_BYTES = 64 * 2**20
    """What may be missing of the memory that was free before: the driver keeps a little."""

    def __enter__(self) -> "MemoryWatch":
        self._probe = subprocess.Popen(
            [sys.executable, "-c", PROBE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.is_watching = True
        self.is_watching = self.free_bytes() > 0
        return self

    def __exit__(self, *_: object) -> None:
        self._probe.kill()
        self._probe.wait()

    def free_bytes(self) -> int:
        if not self.is_watching:
            return 0
        try:
            self._probe.stdin.write("\n")
        except BrokenPipeError:
            return 0
        return int(self._probe.stdout.readline() or 0)
