"""Prints what training would run on, as JSON: `{"name", "total_bytes", "capability"}`."""

import json
import os
from pathlib import Path
from typing import Any

ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of NVIDIA, AMD, and both under WSL. Without one, torch need not be asked."""


def find_device() -> dict[str, Any]:
    if any(Path(path).exists() for path in ACCELERATORS):
        import torch

        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            capability = f"{properties.major}.{properties.minor}"
            return {"name": properties.name, "total_bytes": properties.total_memory, "capability": capability}
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"name": "cpu", "total_bytes": total, "capability": None}


if __name__ == "__main__":
    print(json.dumps(find_device()))
