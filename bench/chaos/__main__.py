"""Kill and freeze the parts of a service at work, and look for anything that is lost, done twice or half there.

usage: python bench/chaos [--kills 200] [--seed 1] [--ledger data/bench/chaos.jsonl] [--steps 150]

Small real training jobs run through `tunesmith up` and one more worker, on a lease of 4 s and a reaper that looks each second.
Meanwhile kill -9 hits the stage processes, the workers, the API, the broker and `up`; workers and stages are stopped for longer
than the lease; workers are told to leave. What is drawn depends on the seed and the number of the strike only.

A strike is aimed or not. Aimed at a checkpoint's write, it waits until a stage has a `.part-` folder; aimed at a publication,
until a stage has written its result. Whether it hit is looked up when the dead can change nothing more: the folder is still
there; or the result is, and the run still says running. A stage counts as running when its process lived right before the
signal: for a stage or a worker its own, for other targets any.

Three deaths in a row without a new checkpoint end a job by rule: where a strike would be the third, another target is taken, so
that every job can and must succeed.

Everything is written to the ledger at once; the same command goes on where it was cut off, on the data folder beside it.
Exit status 0 means: as many kills as asked for, and nothing found.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from database import install_audit
from ledger import Ledger
from service import Service
from strikes import Striker, draw
from verdict import COUNTS, count_strikes, judge, print_strikes
from watchers import FileWatcher, ProcessWatcher
from workload import Workload, prepare_files

from app.db import make_engine
from app.settings import Settings
from client.api import Client

LAST_JOBS_SECONDS = 1800.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ledger", type=Path, default=Path("data/bench/chaos.jsonl"))
    parser.add_argument("--steps", type=int, default=150, help="of each training")
    arguments = parser.parse_args()
    ledger = Ledger(arguments.ledger)
    asked = {"seed": arguments.seed, "steps": arguments.steps}
    if (began := ledger.all("run")) and any(began[0][key] != value for key, value in asked.items()):
        parser.error(f"{arguments.ledger} began with {began[0]}; go on with the same, or name another ledger")
    ledger.add("run", **asked)
    print(f"seed {arguments.seed}, {ledger.kills} of {arguments.kills} kills done, ledger {arguments.ledger}", flush=True)
    started = time.monotonic()
    wrong = run(arguments, ledger)
    print_strikes(ledger)
    counts = {name: len(wrong[name]) for name in COUNTS}
    result = {"seconds": round(time.monotonic() - started), "jobs": len(ledger.all("job")), **count_strikes(ledger), **counts}
    ledger.add("end", **result)
    for name, found in wrong.items():
        for detail in found:
            print(f"{name}: {detail}")
    print(json.dumps(result))
    sys.exit(any(counts.values()) or ledger.kills < arguments.kills)


def run(arguments: argparse.Namespace, ledger: Ledger) -> dict[str, list[str]]:
    folder = arguments.ledger.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    prepare_files(folder)
    service = Service(folder)
    client = service.start()
    engine = make_engine(Settings().database)
    install_audit(engine)
    workload = Workload(client, ledger, folder, arguments.seed, arguments.steps)
    workload.run_reference()
    watchers = [ProcessWatcher(ledger, service.root, engine), FileWatcher(ledger, service.root, Client(service.url))]
    for watcher in watchers:
        watcher.start()
    workload.start()
    striker = Striker(service.root, engine, service.watch)
    try:
        send_strikes(striker, ledger, arguments)
        striker.wait(workload.is_done, LAST_JOBS_SECONDS)
    finally:
        striker.thaw(all=True)
        for watcher in watchers:
            watcher.stop()
        left = service.stop()
    for process in left:
        ledger.add("violation", what="orphan", detail=f"{process.pid} after the end: {' '.join(process.words)}")
    return judge(engine, ledger)


def send_strikes(striker: Striker, ledger: Ledger, arguments: argparse.Namespace) -> None:
    number = max((strike["number"] for strike in ledger.all("strike")), default=0)
    while ledger.kills < arguments.kills:
        number += 1
        if done := striker.strike(draw(arguments.seed, number)):
            ledger.add("strike", number=number, **done)
            print(f"{number}: {done['signal']} {done['target']}, {done['phase']}, {done['inside'] or ''}", flush=True)


if __name__ == "__main__":
    main()
