# Two commands: `make reproduce` and `make test`. Both build the environment first, from the lock, unless it is there.
VENV := $(or $(LTCAM_VENV),.venv)
PYTHON ?= python3
PROFILE ?= demo
BIN := $(VENV)/bin
LOCK := $(shell $(PYTHON) -c "import hashlib; print(hashlib.sha256(open('requirements.lock', 'rb').read()).hexdigest()[:16])")
STAMP := $(VENV)/.lock-$(LOCK)
# The code is this checkout's, also in an environment that another checkout built.
export PYTHONPATH := $(CURDIR)
# And a notebook's kernel is this environment's, whatever `python3` is installed elsewhere.
unexport JUPYTER_PATH

.PHONY: reproduce book docs gpu test lint tables unit nbval audit faults rehearsal coverage mutation matrix environment golden notebooks lock

# Linux: freed memory is kept, in huge pages, for the next batch (docs/speed.md).
reproduce nbval golden notebooks: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000
reproduce: $(STAMP)
	$(BIN)/python -m ltcam reproduce --profile $(PROFILE)

# The benchmarks, one epoch of training and the demo on CUDA, then the numbers of every device side by side.
gpu: $(STAMP)
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('no CUDA device: torch.cuda.is_available() is False')"
	for what in peers scale floor; do $(BIN)/python -m benchmarks.$$what || exit 1; done
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	$(BIN)/python -m ltcam train --data demo --profile demo --set epochs=1 --out $$out/epoch && \
	LTCAM_RUNS= LTCAM_OUTPUT=$$out $(BIN)/python -m ltcam reproduce --profile demo
	$(BIN)/python -m benchmarks.beside

# One book of README, docs, executed notebooks and figures: book/index.html. It asks no other host for anything.
book: $(STAMP)
	$(BIN)/python docs/explorer.py demo demo
	$(BIN)/python -m sphinx -W --keep-going -q -d build/book -c docs . book

# The tables in README.md and docs/ that come from committed results; `make lint` names the stale ones.
docs: $(STAMP)
	$(BIN)/python docs/sections.py

test: lint tables unit nbval

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/sections.py --check

# Every committed table, made anew from the committed counts: the same bytes, or it is named stale.
COMMITTED := $(wildcard results/paper/*/trainings.csv results/real/*/trainings.csv)
tables: $(STAMP)
	$(BIN)/python -m ltcam.paper --check $(foreach file,$(COMMITTED),$(wordlist 2,3,$(subst /, ,$(file))))

# Two processes of one thread each, a file at a time.
unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The committed notebooks, executed on the demo data and compared cell by cell, from no state at all.
nbval: $(STAMP)
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	LTCAM_RUNS= LTCAM_OUTPUT=$$out $(BIN)/python -m pytest --nbval --nbval-current-env --nbval-sanitize-with notebooks/sanitize.cfg -p no:cacheprovider notebooks

# Its tools are of the extra `audit`, in an environment of their own; pip-audit asks the vulnerability service of the package index.
audit:
	tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	$(PYTHON) -m venv "$$tools" && "$$tools/bin/python" -m pip install --quiet "bandit>=1.9" "pip-audit>=2.9" && \
	"$$tools/bin/python" -m bandit -q -c pyproject.toml -r ltcam && \
	"$$tools/bin/python" -m pip_audit --disable-pip --require-hashes -r requirements.lock

# What is killed, cut off or filled up, ten times where chance decides.
faults: $(STAMP)
	LTCAM_FAULTS=10 $(BIN)/python -m pytest tests/faults

# All that `ltcam reproduce` does, from nothing, on small files that look like KSDD2. Minutes.
rehearsal: $(STAMP)
	LTCAM_REHEARSAL=1 $(BIN)/python -m pytest tests/paper/test_rehearsal.py

# Lines of ltcam that the tests run, in all their processes; 95% at least.
coverage: $(STAMP)
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --show-missing

# Half an hour at most of changed lines in what a number depends on, and which of them no test notices.
mutation: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "mutmut>=3.8"
	PYTHONPATH= OMP_NUM_THREADS=1 timeout 1800 $(BIN)/python -m mutmut run
	PYTHONPATH= $(BIN)/python -m mutmut results

# The tests (or TESTS) on every Python and the oldest and the newest torch that are promised, each in an environment of its own.
PYTHONS ?= python3.11 python3.12
TORCHES ?= torch==2.11.* torch
matrix:
	for python in $(PYTHONS); do for torch in $(TORCHES); do \
	    env=$$(mktemp -d) && $$python -m venv "$$env" && \
	    "$$env/bin/python" -m pip install --quiet --disable-pip-version-check "$$torch" -e ".[companion,book,test]" && \
	    "$$env/bin/python" -c "import sys, torch; print('Python', sys.version.split()[0], 'torch', torch.__version__)" && \
	    "$$env/bin/python" -m pytest $(TESTS); status=$$?; rm -rf "$$env"; test $$status = 0 || exit 1; \
	done; done

environment: $(STAMP)

# The lock's hash is in the stamp's name, so what this depends on is not a time. `.lock` says whose environment it is.
$(STAMP):
	@test ! -e $(VENV) || ls $(VENV)/.lock* >/dev/null 2>&1 || { echo "$(VENV) was not built by make: set LTCAM_VENV to another folder"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV) && touch $(VENV)/.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# For those who change things: golden values of the demo and the notebooks' outputs; the lock.
golden: $(STAMP)
	rm -rf data/golden/demo && mkdir -p data/golden/demo
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	LTCAM_RUNS= LTCAM_OUTPUT=$$out $(BIN)/python -m ltcam reproduce --profile demo && \
	cd $$out/results/demo/demo && cp ablations.csv best.csv comparison.csv crops.csv cross.csv data.csv dropped.csv labels.csv sweep.csv table*.csv $(CURDIR)/data/golden/demo/

notebooks: $(STAMP)
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	LTCAM_RUNS= LTCAM_OUTPUT=$$out $(BIN)/python -c "from ltcam.paper.kernels import fork; fork(); \
	    from nbconvert.nbconvertapp import main; main()" --to notebook --execute --inplace --log-level WARN \
	    --ExecutePreprocessor.record_timing=False notebooks/[0-9]*.ipynb
	$(BIN)/python -m ltcam.paper.pictures notebooks/[0-9]*.ipynb

lock: $(STAMP)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	    --no-emit-index-url --no-emit-find-links --upgrade --extra companion --extra book --extra test pyproject.toml -o requirements.lock
