# The two commands of the README are `make demo` and `make test`; both set up what they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each run leaves a JUnit report in out/, for `consilium release evidence tests`.
# The models of the tests are small: threads of their own would only get in each other's way. Bytecode is kept,
# whatever the environment says: each process that a test starts would compile thousands of modules again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# uv does not read pip's find-links setting; it is passed on so that a locally provided torch is found.
FIND_LINKS := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))

.PHONY: install debian demo test check soak audit clean
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt uv
	UV_FIND_LINKS="$(FIND_LINKS)" VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q --compile-bytecode -c constraints.txt \
		-e '.[coordinator,dev]'
	touch $(STAMP)

debian: ## Debian packages that some live tests use; they skip with a reason where these are missing
	apt-get update -qq && apt-get install -y -qq chromium gcc iproute2 libc6-dev nginx-light postgresql

demo: install ## four hospitals, real Airflow, one verified release
	$(BIN)/consilium demo

check: install ## lint, types, imports, fast tests: under three minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy contracts durable privacy models strategies validation release site_runtime tasks
	$(BIN)/lint-imports
	$(PYTEST) -n 2 --dist loadfile --junitxml=out/tests-fast.xml -m "not live and not slow and not soak"

test: check ## everything but the long forms
	$(PYTEST) -n 2 --dist loadfile --junitxml=out/tests-slow.xml -m "slow and not live and not soak"
	$(PYTEST) --junitxml=out/tests-live.xml -m "live and not soak"

soak: install ## the long forms of chaos, audit and endurance
	$(PYTEST) --junitxml=out/tests-soak.xml -m soak

audit: install ## bill of materials and dependency audit of this environment, into out/
	test -x .venv-audit/bin/pip-audit || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install -q -c constraints.txt pip-audit cyclonedx-bom
	.venv-audit/bin/python .ci/dependencies.py $(BIN)/python out

clean:
	-test -x $(BIN)/consilium && $(BIN)/consilium down
	rm -rf $(VENV) .venv-audit .consilium out *.egg-info .pytest_cache .mypy_cache .ruff_cache
