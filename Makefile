# All targets work in .venv, which is made where it is missing. The machine needs Python >= 3.10 with venv, a C++20
# compiler and make. CMake and ninja come from the package index.
#   make PYTHON=python3.12              uses another interpreter
#   make TORCH='torch>=2.10'            uses another torch than the default below, unless .venv has a torch already

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python

# The tools of build-system.requires in pyproject.toml, and build. The build runs without isolation, so that torch is fetched
# only once.
BUILD_TOOLS := 'setuptools>=77' 'cmake>=3.25' ninja build

export PATH := $(abspath $(BIN)):$(PATH)
SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format wheel-check sanitize avx512-check arm-check clang-check cuda-import-check docs clean

CACHE_TAG  = $(shell $(PY) -c 'import sys; print(sys.implementation.cache_tag)')
NATIVE    := $(wildcard setup.py CMakeLists.txt) $(shell find csrc -type f 2>/dev/null)
CXX_FILES := $(shell find csrc tests/native benchmarks/native -name '*.h' -o -name '*.cpp' -o -name '*.cu' 2>/dev/null)

KERNEL_TESTS ?= $(wildcard $(addprefix tests/test_,$(addsuffix .py,plan sparse_conv wgrad conv ops nn checkpoint hostile)))

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

$(PY):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("sparsegan needs Python 3.10 or later; $(PYTHON) is " + sys.version.split()[0] + ". Choose another with: make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo '$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv'; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo 'No C++ compiler found (looked for $${CXX:-c++}). On Debian and Ubuntu: apt-get install g++'; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Torch is installed first and alone, because every later step must find it and must not replace it.
$(VENV)/.tools: pyproject.toml | $(PY)
	$(PY) -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' || $(PY) -m pip install -q '$(TORCH)'
	$(PY) -m pip install -q $(BUILD_TOOLS)
	touch $@

# The install is editable. A changed Python file needs no new install. A changed native source needs one, which
# builds only the changed parts.
$(VENV)/.installed: $(VENV)/.tools pyproject.toml $(NATIVE)
	$(PY) -m pip install -q --no-build-isolation -e '.[demo,test,dev]'
	ln -sf build/$(CACHE_TAG)/compile_commands.json .  # for clangd
	@$(BIN)/sparsegan info | sed -n 's/^cuda kernels */CUDA kernels: /p'
	touch $@

venv: $(VENV)/.installed ## make .venv and install sparsegan and its tools into it

demo: venv ## compress a DCGAN trained on real digits to 90 % and show the table and runs/demo/report.html
	$(BIN)/sparsegan demo --out runs/demo

test: venv ## run the tests
	cmake --build build/$(CACHE_TAG) --target check_kernels simt
	build/$(CACHE_TAG)/check_kernels all 1000
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile  # tests of several threads ask for them

lint: venv ## run ruff, mypy and clang-format, which only report
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run -Werror $(CXX_FILES))

format: venv ## let ruff and clang-format rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CXX_FILES),$(BIN)/clang-format -i $(CXX_FILES))

docs: venv ## render README.md, docs/ and the docstrings into build/docs; a dead link or reference is an error
	$(PY) -m pip install -q --no-build-isolation -e '.[docs]'
	$(PY) -m sphinx -q -E -a -W --keep-going -c docs . build/docs
	cp build/docs/README.html build/docs/index.html

wheel-check: venv ## build the sdist and from it the wheel, install the wheel in a fresh environment, run a smoke test outside the source tree
	rm -rf build/wheel-check
	$(PY) -m build -q --sdist --no-isolation --outdir build/wheel-check .
	tar -xzf build/wheel-check/sparsegan-*.tar.gz -C build/wheel-check
	$(PY) -m pip wheel -q --no-build-isolation --no-deps -w build/wheel-check build/wheel-check/sparsegan-*/
	$(PYTHON) -m venv build/wheel-check/venv
	build/wheel-check/venv/bin/python -m pip install -q '$(TORCH)' build/wheel-check/*.whl
	cd build/wheel-check && venv/bin/python -I ../../tests/smoke.py ../..

# The tests find this second copy of the package before the copy in .venv. The sanitizers' library must be loaded first.
# libstdc++ must be loaded with it, because the sanitizer looks up the functions that throw C++ exceptions at its start.
sanitize: venv ## run the kernel tests under the address and undefined-behaviour sanitizers
	rm -rf build/sanitize
	SPARSEGAN_SANITIZE=1 $(PY) -m pip install -q --no-build-isolation --no-deps --target build/sanitize .
	export PYTHONPATH=build/sanitize ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1; \
	export LD_PRELOAD="$$(for l in asan stdc++; do $${CXX:-c++} -print-file-name=lib$$l.so; done | xargs)"; \
	$(PY) -c 'import sys; del sys.path[0]; from sparsegan.ops import native; assert native.sanitized, native.__file__'; \
	$(BIN)/pytest --capture=sys $(KERNEL_TESTS)  # --capture=sys lets a sanitizer's report reach the terminal
	cmake --build build/sanitize-$(CACHE_TAG) --target check_kernels
	build/sanitize-$(CACHE_TAG)/check_kernels

avx512-check: venv ## check the AVX-512 kernels on an emulated processor, where the machine has none (Debian 12)
	cmake --build build/$(CACHE_TAG) --target check_kernels
	tests/native/emulate.sh build/$(CACHE_TAG)/check_kernels

# A cross-build that runs under user-mode emulation. On Debian: apt-get install g++-aarch64-linux-gnu qemu-user
ARM_CXX  ?= aarch64-linux-gnu-g++
ARM_QEMU ?= qemu-aarch64
arm-check: venv ## build the kernels for 64-bit ARM and check them under emulation
	@for tool in $(ARM_CXX) $(ARM_QEMU); do command -v $$tool >/dev/null || { echo "There is no $$tool. On Debian: apt-get install g++-aarch64-linux-gnu qemu-user"; exit 1; }; done
	cmake -S . -B build/arm -G Ninja -DSPARSEGAN_KERNELS_ONLY=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM_CXX)
	cmake --build build/arm
	$(ARM_QEMU) build/arm/check_kernels all 300
	$(PY) tests/native/inner_loops.py $(ARM_CXX)

CLANG ?= clang++-16
clang-check: venv ## build everything with clang, check the kernels, and run their tests against that build
	@command -v $(CLANG) >/dev/null || { echo 'There is no $(CLANG). On Debian: apt-get install clang-16; another: make clang-check CLANG=clang++'; exit 1; }
	cmake -S . -B build/clang -G Ninja -DCMAKE_CXX_COMPILER=$(CLANG) -DPython_EXECUTABLE=$(abspath $(PY)) -DSPARSEGAN_CUDA=0
	cmake --build build/clang --target _cpu check_kernels
	build/clang/check_kernels all 1000
	rm -rf build/clang/package && mkdir build/clang/package && cp -r sparsegan build/clang/package && cp -r kernels build/clang/package/sparsegan/kernels
	cp build/clang/_cpu.so build/clang/package/sparsegan
	PYTHONPATH=build/clang/package $(BIN)/pytest $(KERNEL_TESTS)
	$(CLANG) -std=c++20 -U__linux__ -Wall -Wextra -Werror -fsyntax-only csrc/cpu/*.cpp csrc/core/*.cpp  # as on macOS

# The first run needs nvcc, about 8 GB and a quarter of an hour.
CUDA_TORCH ?= torch==2.14.1
CUDA_VENV  ?= build/cuda-import/venv
cuda-import-check: venv ## build, import and run the CPU tests with a CUDA build of torch, in a separate environment; no GPU is needed
	rm -rf build/cuda-import/source && mkdir -p build/cuda-import/source
	$(PY) -m build -q --sdist --no-isolation --outdir build/cuda-import .
	tar -xzf build/cuda-import/sparsegan-*.tar.gz --strip-components=1 -C build/cuda-import/source
	test -x $(CUDA_VENV)/bin/python || $(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install -q '$(CUDA_TORCH)' $(BUILD_TOOLS)
	export PATH=$(abspath $(CUDA_VENV)/bin):$$PATH; cd build/cuda-import/source; \
	SPARSEGAN_CUDA=1 python -m pip install -q --no-build-isolation -e '.[demo,test]'; \
	python -c 'import torch, sparsegan.profiling.info as i; print(torch.__version__, i.cuda_kernels()); assert i.cuda_kernels().endswith("; loaded")'; \
	python -m pytest

clean: ## remove all build output; .venv and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis compile_commands.json
	rm -f sparsegan/*.so $(VENV)/.installed
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
