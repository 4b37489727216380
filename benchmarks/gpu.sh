#!/usr/bin/env bash
# Runs everything that needs a GPU. The machine needs no network, but nvcc and Python >= 3.10 with torch (CUDA), Triton,
# numpy, safetensors, rich, pytest, hypothesis, setuptools >= 77, cmake and ninja. pytest-xdist makes the tests faster.
# Each stage takes less than 8 minutes, keeps its results, and may be stopped and run again.
#
#   bash benchmarks/gpu.sh                 all stages, one after the other
#   bash benchmarks/gpu.sh build test      some of them
#   bash benchmarks/gpu.sh --dry-run       print what would run, run nothing
#
# If the build fails, the script stops. If another stage fails, the next stages still run, and the exit status is not 0.
#
# OUT=folder    gets the log and copies of the results (default: runs/gpu)
# PYTHON=...    the interpreter (default: python3)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-runs/gpu}
LIMIT=470 # seconds per stage

declare -A STAGES=(
  [build]="build the CPU and CUDA objects with nvcc, install the package without its dependencies, check that torch has the CUDA ops"
  [test]="all GPU tests, and the tests of the ops, plans and layers on this Python and torch"
  [sanitize]="compute-sanitizer, with memcheck and racecheck, over a few calls of every kernel"
  [numbers]="the four numbers that decide the design: gather rate from L2, tensor-core rate, clocks per tap, launch time"
  [tune]="measure the Triton block sizes and write the table of the fastest"
  [bench]="sparsegan bench gpu: layers, forward and training, against the best dense call; ceilings"
  [generators]="whole generators at batch 1, called and replayed from CUDA graphs, dense and sparse"
  [step]="a compression step, with compressed weights and with masks over dense weights"
  [table]="the table of benchmarks/results/gpu.json, for README.md"
)
ORDER=(build test sanitize numbers tune bench generators step table)

build() {
  SPARSEGAN_CUDA=1 "$PYTHON" -m pip install -q --no-index --no-build-isolation --no-deps -e .
  "$PYTHON" -m sparsegan info
  "$PYTHON" -c 'import sys, torch, sparsegan.ops as ops
if not torch.cuda.is_available(): sys.exit("gpu.sh: torch sees no GPU")
for op in ("sparse_conv", "wgrad"):
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsegan::{op}", "CUDA"):
        sys.exit(f"gpu.sh: torch has no sparsegan::{op} for CUDA; the library is {ops.cuda_library()}")
print("gpu.sh: torch has the CUDA ops of", ops.cuda_library())'
}
test() { # a fixed seed draws the same examples at each call, so that kernels that Triton has compiled are used again
  local many=()
  if "$PYTHON" -c "import xdist" 2>/dev/null; then many=(-n 8); fi
  SPARSEGAN_TEST_DEVICE=cuda "$PYTHON" -m pytest -q --maxfail 20 --hypothesis-seed 0 "${many[@]}" tests/gpu
  OMP_NUM_THREADS=2 "$PYTHON" -m pytest -q "${many[@]}" tests/test_plan.py tests/test_sparse_conv.py tests/test_wgrad.py tests/test_nn.py
}
sanitize() { # without torch's memory cache, the end of a tensor is the end of its allocation
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 "$PYTHON" tests/gpu/every_kernel.py
  compute-sanitizer --tool racecheck --error-exitcode 1 "$PYTHON" tests/gpu/every_kernel.py
}
numbers() { # resumable
  "$PYTHON" benchmarks/gpu_numbers.py --json benchmarks/results/gpu_numbers.json
}
tune() {
  "$PYTHON" -m sparsegan.benchmark.tune_kernels --seconds 380
  cp kernels/tuned_table.py "$OUT"/
}
bench() { # resumable: a run that was stopped continues
  "$PYTHON" -m sparsegan bench gpu --seconds 0.1 --json benchmarks/results/gpu.json
}
generators() { # resumable
  "$PYTHON" benchmarks/cuda_graph.py --granularity element,vector:32 --json benchmarks/results/cuda_graph.json
}
step() { # resumable
  "$PYTHON" benchmarks/compression_step.py --device cuda --seconds 20 --json benchmarks/results/compression_step_gpu.json
}
table() {
  "$PYTHON" benchmarks/readme.py --table gpu
}

dry_run=0
chosen=()
for argument in "$@"; do
  if [[ $argument == --dry-run ]]; then
    dry_run=1
  elif [[ -v STAGES[$argument] ]]; then
    chosen+=("$argument")
  else
    echo "gpu.sh: $argument is no stage; accepted: ${ORDER[*]}, and --dry-run" >&2
    exit 2
  fi
done
[[ ${#chosen[@]} -gt 0 ]] || chosen=("${ORDER[@]}")

if ((dry_run)); then
  for stage in "${chosen[@]}"; do
    printf '%-11s %s (at most %d s)\n' "$stage" "${STAGES[$stage]}" "$LIMIT"
    declare -f "$stage" | sed '1,2d;$d;s/^/           /'
  done
  exit 0
fi

command -v "$PYTHON" >/dev/null || {
  echo "gpu.sh: PYTHON is $PYTHON; there is no such program" >&2
  exit 2
}
mkdir -p "$OUT"
# pip has installed cmake and ninja beside the interpreter. nvcc and compute-sanitizer are in CUDA's folder.
PATH=$(dirname "$(command -v "$PYTHON")"):$PATH:/usr/local/cuda/bin
export PATH PYTHON OUT PYTHONUNBUFFERED=1
failed=()
for stage in "${chosen[@]}"; do
  echo "== $stage: ${STAGES[$stage]}" | tee -a "$OUT/gpu.log"
  status=0
  timeout --signal INT --kill-after 20 "$LIMIT" bash -euo pipefail -c "$(declare -f "$stage"); $stage" 2>&1 |
    tee -a "$OUT/gpu.log" || status=$?
  cp -f benchmarks/results/{gpu,gpu_numbers,cuda_graph,compression_step_gpu}.json "$OUT"/ 2>/dev/null || true
  ((status == 0)) || {
    echo "gpu.sh: $stage stopped with status $status (124 and 137: out of time; run it again)" | tee -a "$OUT/gpu.log" >&2
    failed+=("$stage")
    [[ $stage != build ]] || exit "$status"
  }
done
((${#failed[@]} == 0)) || {
  echo "gpu.sh: these stages failed: ${failed[*]}" >&2
  exit 1
}
