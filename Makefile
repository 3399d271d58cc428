# make train: train codec and vocoder on the shipped speech
# make quick: lint, types, documentation, and the tests that take no long
# make checks: lint, types, documentation
# make test: all tests, with what `make checks` checks and `make narrow`
# make narrow: tests of what a CPU's convolutions round, as if the CPU had fewer instructions
# make fuzz: thousands of broken files, each read right or refused by name
# make tritons: the kernels under the oldest and the newest Triton that are supported
# make kills: trainings that are killed, and disks that fail them: nothing is lost, nothing left over
# make bench: benchmarks, reference against fast                 make format, make clean
# make docs: the documentation as a site, in build/site
# make first-contact: rehearse bench/gpu.py with a GPU machine's versions (see bench/RESULTS.md)
.PHONY: train quick test checks lint types tests narrow fuzz tritons kills bench docs format clean
.PHONY: first-contact

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTHON312 ?= python3.12
FIRST := build/first-contact
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

train: $(VENV)/train
	$(BIN)/python reference/train.py

# Two processes of one thread each: small tensors gain nothing from more threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder

quick: checks
	$(PYTEST) -q -m "not slow and not long"

test: checks tests narrow

checks: $(VENV)/dev
	$(MAKE) --no-print-directory -j 2 -O lint types docs

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow the mapping of folders to packages: it reads an installed copy. What it knows
# of other packages, most of its time, stays in build/mypy.
types: $(VENV)/dev
	rm -rf build/types build/lib
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target build/types .
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy -p muomni_fast

tests: $(VENV)/dev
	$(PYTEST) --durations=15

# oneDNN and ATen choose code, and so rounding, by the CPU: AVX2's where it has AVX-512, else SSE4.1's.
# Without V1 and streams of speech, which take most of the time; from the files that have such tests.
NARROW := ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default
ifneq ($(shell grep -s -m1 avx512f /proc/cpuinfo),)
NARROW := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
endif

narrow: $(VENV)/dev
	$(NARROW) $(PYTEST) -q -m "cpu_rounding and not slow" -k "not triton and not kernels and not torch-v1 and not streams" \
		$$(grep -rl cpu_rounding tests --include='test_*.py')

# Without what libmpg123 says of broken MP3 files, unless something fails.
fuzz: $(VENV)/dev
	mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py 2> build/fuzz.log || { cat build/fuzz.log; exit 1; }

# Compiled and interpreted; the numpy of this environment is too new for 3.6's interpreter, which the
# tests then say.
TRITONS := 3.6.0 3.9.0
KERNEL_TESTS := tests/test_launch.py tests/rvq/test_kernels.py tests/vocoder/test_conv_kernels.py \
	tests/vocoder/test_mrf_kernels.py

tritons: $(VENV)/dev
	for version in $(TRITONS); do \
		$(BIN)/pip install --quiet --upgrade --no-deps --target build/tritons/$$version triton==$$version && \
		PYTHONPATH=build/tritons/$$version $(BIN)/python bench/aot.py --main && \
		PYTHONPATH=build/tritons/$$version $(PYTEST) -q $(KERNEL_TESTS) || exit 1; \
	done

kills: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/kills.py

bench: $(VENV)/dev
	$(BIN)/pytest bench --benchmark-only

# The variable keeps a notice about another product out of the output.
docs: $(VENV)/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -P -m mkdocs build --strict -q -d build/site

# Compile all that bench/gpu.py launches, pack it, and run it over a driver that executes nothing.
first-contact: $(FIRST)/ready
	rm -rf $(FIRST)/cache $(FIRST)/out
	mkdir -m 700 $(FIRST)/cache
	MUOMNI_BENCH_OUT=$(FIRST)/out TRITON_CACHE_DIR=$(CURDIR)/$(FIRST)/cache $(FIRST)/bin/python \
		bench/gpu.py --rehearse --budget 7200 --pack build/first-contact-cache.tar.xz

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(FIRST)/ready: bench/first-contact.txt pyproject.toml
	test -x $(FIRST)/bin/python || $(PYTHON312) -m venv $(FIRST)
	$(FIRST)/bin/pip install --quiet --disable-pip-version-check -r bench/first-contact.txt
	$(FIRST)/bin/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info

# A stamp per set of extras; the dev environment holds the train one.
$(VENV)/setuptools: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) setuptools
	touch $@

$(VENV)/train: $(VENV)/setuptools pyproject.toml
	$(PIP) --no-build-isolation -e ".[train]"
	touch $@

$(VENV)/dev: $(VENV)/setuptools pyproject.toml
	$(PIP) --no-build-isolation -e ".[dev]"
	touch $@ $(VENV)/train
