# make demo      a trained, evaluated SASRec on the embedded data, in .venv, from nothing
# make test      the tests; CONTRIBUTING.md lists those that take longer or test other builds
# make docs      the documentation; make release: the archive and the wheel, tried
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Or each process of the tests would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-slow test-web test-cluster test-gpu test-plain test-sanitize test-clang lint format bench bench-serve bench-gpu gpu bench-peers pictures docs release clean

install: $(VENV)/.installed

# Without bytecode: most modules are never imported, and Python compiles the others when they are.
$(VENV)/.installed: pyproject.toml constraints.txt hatch_build.py $(wildcard src/seqrec/kernels/*.cpp src/seqrec/kernels/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "seqrec needs Python 3.11 or newer; name one with make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/seqrec demo --overwrite

test: install
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not web and not cluster"

test-slow: install
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow

# The web page in Chromium (apt-get install chromium).
test-web: install
	$(BIN)/python -m pytest -m web tests/web

# Several processes and Ray clusters on this machine. A Python process can be part of one cluster in its life, so each file
# has its own. Clusters wait half of the time, so three files run at once; those that take longest begin.
LONG := $(addprefix tests/cluster/test_,train_failures.py train.py processes.py torchrun.py)
CLUSTER := $(LONG) $(filter-out $(LONG),$(shell grep -l mark.cluster tests/cluster/test_*.py))

test-cluster: install
	$(MAKE) --no-print-directory -j3 -O $(CLUSTER)

.PHONY: $(CLUSTER)
$(CLUSTER): install
	$(BIN)/python -m pytest -m cluster $@

# The tests that need an NVIDIA GPU.
test-gpu: install gpu
	$(BIN)/python -m pytest -m cuda

# The tests whose code calls the compiled loops itself, slow ones too, without the loops: on the same code in torch. Reading
# logs, planning, refits, the command line, run folders, reports and the server do not depend on which of the two computes.
STEPS := $(addprefix training/test_,averaging.py loop.py losses.py objective.py optim.py prefetch.py start.py step.py)
PLAIN := $(addprefix tests/,kernels models ranking $(STEPS) test_contract.py test_predictor.py test_recommender.py)

test-plain: install
	SEQREC_KERNELS=0 $(BIN)/python -m pytest -n auto --dist worksteal -m "not web and not cluster" $(PLAIN)

# The compiled loops, built with AddressSanitizer and UndefinedBehaviorSanitizer into a temporary folder.
test-sanitize: install
	$(BIN)/python tests/kernels/rebuilt.py sanitize

# The compiled loops, built with clang++ and without OpenMP into a temporary folder.
test-clang: install
	$(BIN)/python tests/kernels/rebuilt.py clang

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# dist/: the source archive and a manylinux wheel, checked and tried in environments without a compiler; PYTHONS says which.
release: install
	$(BIN)/python scripts/release.py $(PYTHONS)

# site/: the documentation; a link that leads nowhere is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(BIN):$$PATH" mkdocs build --strict
	@echo "open site/index.html, or for the search too: $(BIN)/python -m http.server --directory site"

bench: install
	$(BIN)/seqrec bench $(LOG) --out runs/bench

# make bench-serve RUN=runs/demo
bench-serve: install
	$(BIN)/python benchmarks/serve.py $(RUN) --workers 2

# make bench-gpu LOG=games.txt; without a log, the demo's
bench-gpu: install gpu
	$(BIN)/python benchmarks/gpu.py $(LOG)

gpu:
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "torch finds no NVIDIA GPU")'

# make bench-peers LOG=games.txt; the first call creates an environment for each of the other packages
bench-peers: install
	$(BIN)/python benchmarks/peers.py $(LOG)
	$(BIN)/python benchmarks/peers.py $(LOG) --job rank

pictures: install
	$(BIN)/seqrec demo --out runs/pictures --overwrite
	mkdir -p docs/images
	cp runs/pictures/training.png runs/pictures/recommendations.png docs/images/

clean:
	rm -rf dist build site .mypy_cache .ruff_cache
