# make serve | test | check: each does its own set-up in .venv, needs only Python (3.11-3.13) and pip, and is quick the second time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CODEGEN := $(VENV)-codegen/bin/python
export PYTHON VENV

.PHONY: help serve test check lint types layers protos generated docker proto baseline format bench bench-engine bench-peers bench-kernels bench-plots clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

serve: ## Start the gRPC service (50051) and the REST gateway (8080); flags: make serve ARGS="--model-id ..."
	@scripts/setup.sh serve
	@exec $(BIN)/tokenwire launch $(ARGS)

test: ## Run the tests; a part: make test ARGS="tests/rpc -k cancel"
	@scripts/setup.sh test
	@$(BIN)/python -m pytest $(ARGS)

check: lint types layers protos generated docker ## Lint, types, import layers, protos, generated code, Dockerfile

lint:
	@scripts/setup.sh test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	@scripts/setup.sh test
	cd service && ../$(BIN)/mypy --config-file ../pyproject.toml -p tokenwire_service
	cd clients/python && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p tokenwire_client
	cd gateway_openai && ../$(BIN)/mypy --config-file ../pyproject.toml -p tokenwire_gateway
	$(BIN)/mypy -p bench

layers:
	@scripts/setup.sh test
	$(BIN)/lint-imports

protos:
	@scripts/setup.sh test
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against protos/baseline.binpb

generated:
	@scripts/setup.sh test
	scripts/check_generated.sh $(CODEGEN)

docker:
	@scripts/setup.sh test
	$(BIN)/hadolint Dockerfile

proto: ## Generate the Python code of protos/
	@scripts/setup.sh test
	$(BIN)/buf format -w
	scripts/generate_code.sh $(CODEGEN)

baseline: ## At a release: make today's contract the one that 'buf breaking' holds later ones to
	@scripts/setup.sh test
	$(BIN)/buf build --path protos/tokenwire/v1 -o protos/baseline.binpb

format: ## Format code and protos
	@scripts/setup.sh test
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/buf format -w

bench: bench-engine ## The engine on this machine, against the roofline; flags: make bench ARGS="--shape tiny"

bench-engine:
	@scripts/setup.sh test
	$(BIN)/python -m bench.engine $(ARGS)

bench-peers: ## Ours beside transformers, llama.cpp, vLLM and OpenVINO, each in .bench/<peer> (a few GB, half an hour)
	@scripts/setup.sh test
	$(BIN)/python -m bench.peers $(ARGS)

bench-kernels: ## Every kernel beside its reference and plain torch; refuses while its tests are red
	@scripts/setup.sh test
	$(BIN)/python -m bench.kernels $(ARGS)

bench-plots: ## Draw result files into docs/images: make bench-plots ARGS="bench/results/<date>-peers.json"
	@scripts/setup.sh test
	$(BIN)/python -m bench.plot $(ARGS)

clean: ## Remove .venv and caches
	rm -rf $(VENV) $(VENV)-codegen .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
