"""How fast a large artifact is downloaded, beside nginx with sendfile on the same file: curl, in turn, into nothing.

    apt-get install nginx-light curl
    python bench/download.py [--bytes 1000000000] [--pairs 5] [--out docs/measurements/download-beside-nginx.json]

Wanted: at least 60 % of nginx, in the median of the pairs. The file lies in the page cache for both.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx2

sys.path.insert(0, str(Path(__file__).parents[1]))

import fuzz

from app import blobs
from app.db import make_engine, write_session
from app.jobs import repository
from app.models import Artifact
from app.settings import Settings
from app.storage import Storage

WANTED = 0.6
NAME = "gguf/large.gguf"
SHA256 = "0" * 64
"""A name only: what a blob holds is checked when it is made, not when it is read."""
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr crit; worker_processes 2; {user}
events {{}}
http {{
    access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    for program in ("nginx", "curl"):
        if shutil.which(program) is None and not Path(f"/usr/sbin/{program}").exists():
            raise SystemExit(f"{program} is not installed: apt-get install nginx-light curl")
    with tempfile.TemporaryDirectory() as name, fuzz.serve(Path(name), None) as url:
        folder = Path(name)
        address, blob = add_artifact(url, folder, options.bytes)
        with nginx(folder, blob.parent) as static:
            urls = {"tunesmith": address, "nginx": f"{static}/{blob.name}"}
            for each in urls.values():
                download(each, options.bytes)
            pairs = [{who: download(each, options.bytes) for who, each in urls.items()} for _ in range(options.pairs)]
    ratio = median(pair["tunesmith"] / pair["nginx"] for pair in pairs)
    result = {"bytes": options.bytes, "bytes_per_second": pairs, "median_ratio": ratio, "wanted": WANTED}
    for pair in pairs:
        print(f"tunesmith {pair['tunesmith'] / 1e6:.0f} MB/s, nginx {pair['nginx'] / 1e6:.0f} MB/s")
    print(f"median of {options.pairs} pairs: {ratio:.2f} of nginx, wanted {WANTED}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(ratio < WANTED)


def add_artifact(url: str, folder: Path, size: int) -> tuple[str, Path]:
    """A job with one large artifact; answers its address and its file."""
    with httpx2.Client(base_url=url) as http:
        job_id = fuzz.submit(http, fuzz.upload(http))
    settings = Settings(data_dir=folder)
    blob = Storage(settings.root).blob(SHA256)
    blob.parent.mkdir(parents=True, exist_ok=True)
    piece = bytes(range(256)) * 4096
    with blob.open("wb") as file:
        for begin in range(0, size, len(piece)):
            file.write(piece[: size - begin])
    engine = make_engine(settings.database)
    with write_session(engine) as session:
        job = repository.get(session, job_id)
        blobs.keep(session, SHA256, size)
        session.add(Artifact(tenant_id=job.tenant_id, job_id=job_id, name=NAME, kind="gguf", blob_sha256=SHA256))
    engine.dispose()
    return f"{url}/v1/jobs/{job_id}/artifacts/{NAME}", blob


@contextmanager
def nginx(folder: Path, root: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = folder / "nginx.conf"
    user = "user root;" if os.getuid() == 0 else ""
    configuration.write_text(NGINX.format(folder=folder, port=port, root=root, user=user))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    process = subprocess.Popen([program, "-e", "stderr", "-c", configuration])
    url = f"http://127.0.0.1:{port}"
    try:
        while not responds(url):
            if process.poll() is not None:
                raise SystemExit("nginx did not start")
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def responds(url: str) -> bool:
    try:
        return httpx2.get(url).status_code > 0
    except httpx2.TransportError:
        return False


def download(url: str, size: int) -> float:
    """Bytes a second."""
    form = "%{http_code} %{size_download} %{speed_download}"
    told = subprocess.run(["curl", "-sS", "-o", "/dev/null", "-w", form, url], check=True, capture_output=True, text=True)
    status, received, speed = told.stdout.split()
    if (status, int(received)) != ("200", size):
        raise SystemExit(f"{url} answered {status} with {received} bytes")
    return float(speed)


if __name__ == "__main__":
    main()
