#!/usr/bin/env bash
# What `make demo` runs: a service of its own on a free port, one small job through its HTTP API, and the result put to the test.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=data/demo
for name in ${!TUNESMITH_@}; do [[ $name == TUNESMITH_CACHE_DIR ]] || unset "$name"; done
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export TUNESMITH_URL=http://127.0.0.1:$port

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

say "A service on $TUNESMITH_URL, its data in $folder"
mkdir -p "$folder"
tunesmith up --data-dir "$folder" --port "$port" >"$folder/service.log" 2>&1 &
service=$!
stop() {
  kill -TERM "$service" 2>/dev/null || true
  wait "$service" || true
}
trap stop EXIT
trap 'exit 130' INT TERM
ready='import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/readyz", timeout=5)'
until python -c "$ready" "$TUNESMITH_URL" 2>/dev/null; do
  kill -0 "$service" 2>/dev/null || { cat "$folder/service.log" >&2; exit 1; }
  sleep 0.5
done
tunesmith workers

say "Sample data: bookings, each with the ticket that a restaurant would write"
python examples/make_data.py "$folder/bookings.jsonl" --held-out "$folder/held-out.jsonl"
head -n 1 "$folder/bookings.jsonl"

say "The job: examples/demo.json"
tunesmith submit examples/demo.json --follow
job=$(tunesmith jobs --limit 1 | cut -f 1)

say "Its report"
tunesmith report "$job"

say "Its GGUF, with the SHA-256 that the service tells and the download has"
tunesmith download "$job" gguf --to "$folder/$job"

say "A booking that was not in the training data, put to the GGUF by llama.cpp"
turns='import json, sys; print(*(turn["value"] for turn in json.loads(open(sys.argv[1]).readline())["conversations"]), sep="\n")'
{ read -r system; read -r question; read -r wanted; } < <(python -c "$turns" "$folder/held-out.jsonl")
echo "question: $question"
echo "wanted:   $wanted"
echo "answer:   $(python examples/ask.py "$folder/$job"/gguf/*.gguf "$question" --system "$system")"
