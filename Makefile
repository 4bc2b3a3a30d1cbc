# make reproduce   train every system on digits and execute every notebook, under build/quick/
# make check       what one runs between two edits: a minute
# make test        what every change must pass
# make proof       what is too long for that: goes on from where it stopped, draws tests/README.md
# make lab         JupyterLab on the notebooks
# make notebooks   execute the committed notebooks from the committed records, in place
# make bench       time ours beside the packages that a user would pick instead: benchmarks/records
#                  (BENCH="--only models" for a part of it, BENCH=--help for the rest)
# make site        the static pages and the explorer, under build/site/
# make address     URL=https://github.com/owner/name: the repository's address, everywhere
# Each installs .venv when it is missing or older than what it is made from, then works offline.

PYTHON ?= python3
BIN := .venv/bin
CHECKED := $(addprefix tests/test_, $(addsuffix .py, attention textbook layers models wings \
	data bad_input claims contract maps paper_csv setup)) tests/test_notebooks.py::test_house_rules
LONG := $(addprefix notebooks/, $(addsuffix .ipynb, \
	02_linear_attention 00_start_here 07_cct 08_cvt))
export OMP_NUM_THREADS ?= 1
# fewer returns of memory to the system: about an eighth of training time on a CPU
export MALLOC_MMAP_THRESHOLD_ ?= 4000000000
export MALLOC_TRIM_THRESHOLD_ ?= 8000000000

.PHONY: reproduce style check test proof lab notebooks bench site address

reproduce: .venv/installed
	$(BIN)/vix reproduce --profile quick

style: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: style
	$(BIN)/pytest -n 2 $(CHECKED)

# two processes: a notebook's cells stay together, the longest begin; tests go where there is room
test: style
	$(BIN)/pytest -n 2 --dist worksteal tests
	$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder --nbval --nbval-current-env \
		--nbval-cell-timeout 600 $(LONG) $(filter-out $(LONG), $(wildcard notebooks/*.ipynb))

proof: .venv/installed
	$(BIN)/python tests/proof.py

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

notebooks: .venv/installed
	$(BIN)/vix reproduce --profile laptop --write

# with glibc's own thresholds, as those who use the packages have them: ours gain less by others
bench: .venv/benchmarks
	env -u MALLOC_MMAP_THRESHOLD_ -u MALLOC_TRIM_THRESHOLD_ $(BIN)/python -m benchmarks $(BENCH)
	$(BIN)/python -m benchmarks --readme

site: .venv/site
	$(BIN)/python site/build.py

address:
	$(PYTHON) site/address.py $(URL)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tests,twins,export]'
	touch $@

# constraints.txt holds torch where it is
.venv/benchmarks: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[twins,benchmarks]'
	touch $@

.venv/site: .venv/installed site/package-lock.json
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,site]'
	npm ci --silent --ignore-scripts --no-audit --no-fund --prefix site
	touch $@
