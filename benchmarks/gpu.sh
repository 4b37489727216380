#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine: Python >= 3.10 with torch (CUDA), Triton, numpy, safetensors, rich, pytest,
# hypothesis, setuptools, wheel, cmake, ninja, pybind11; nvcc; no network. Each stage takes less than 8 minutes, leaves what it
# made, and may be stopped and called again.
#
#   bash benchmarks/gpu.sh                 all stages, one after the other
#   bash benchmarks/gpu.sh build test      some of them
#   bash benchmarks/gpu.sh --dry-run       only say what would run
#
# OUT=folder    logs and results are copied there too (default: runs/gpu)
# PYTHON=...    the interpreter (default: python3)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-runs/gpu}
LIMIT=470 # seconds a stage

declare -A STAGES=(
  [build]="build the CPU and CUDA objects with nvcc, install the package without its dependencies"
  [test]="all GPU tests, and the tests of the ops, plans and layers on this Python and torch"
  [sanitize]="compute-sanitizer, memcheck and racecheck, over a small set of calls of every kernel"
  [tune]="measure the Triton block sizes and write the table of chosen ones"
  [bench]="sparsegan bench gpu: layers, forward and training, against the best dense call; ceilings"
  [table]="the table of benchmarks/results/gpu.json, for README.md"
)
ORDER=(build test sanitize tune bench table)

build() {
  SPARSEGAN_CUDA=1 "$PYTHON" -m pip install -q --no-build-isolation --no-deps -e .
  "$PYTHON" -m sparsegan info
}
test() {
  SPARSEGAN_TEST_DEVICE=cuda "$PYTHON" -m pytest -q -x tests/gpu
  "$PYTHON" -m pytest -q tests/test_plan.py tests/test_gather.py tests/test_wgrad.py tests/test_nn.py
}
sanitize() {
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$PYTHON" tests/gpu/every_kernel.py
  done
}
tune() {
  "$PYTHON" -m sparsegan.kernels.tune
  cp kernels/tuned* "$OUT"/
}
bench() { # resumable: a stopped run goes on where it was
  "$PYTHON" benchmarks/cuda_graph.py --json benchmarks/results/cuda_graph.json
  "$PYTHON" -m sparsegan bench gpu --seconds 0.1 --json benchmarks/results/gpu.json
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
    printf '%-9s %s (at most %d s)\n' "$stage" "${STAGES[$stage]}" "$LIMIT"
    declare -f "$stage" | sed '1,2d;$d;s/^/         /'
  done
  exit 0
fi

mkdir -p "$OUT"
export PYTHON OUT
for stage in "${chosen[@]}"; do
  echo "== $stage: ${STAGES[$stage]}"
  status=0
  timeout "$LIMIT" bash -euo pipefail -c "$(declare -f "$stage"); $stage" 2>&1 | tee "$OUT/$stage.log" || status=$?
  cp -f benchmarks/results/{gpu,cuda_graph}.json "$OUT"/ 2>/dev/null || true
  ((status == 0)) || {
    echo "gpu.sh: $stage stopped with status $status (124: out of time; call it again)" >&2
    exit "$status"
  }
done
