#!/usr/bin/env bash
# Everything that a GPU can tell us, in one call of at most ten minutes, on a machine with torch, triton, pytest and
# pytest-benchmark but no network:
#
#     scripts/gpu_session.sh [OUT] [SECONDS]                    default: ./out, 570
#     scripts/gpu_session.sh OUT SECONDS BENCHMARKS...          only these, at all sizes: benchmarks/test_layer_norm.py
#
# In this order, best first: environment, CUDA tests, benchmarks against peers, tile sweeps until the time is up.
# Each step writes to OUT as it goes, so that a cut leaves what was done. `scripts/fold_results.py OUT` puts the figures
# into benchmarks/results/. Where the tree has no .git, name the commit: FASTGPT_COMMIT=abc1234.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-out}" && cd "${1:-out}" && pwd)
total=${2:-570}
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1

left() { echo $((total - SECONDS)); }

step() {  # step NAME MAX_SECONDS COMMAND...: run it within what is left; a failure is noted and does not stop the rest
    local name=$1 limit=$2
    shift 2
    [ "$(left)" -lt "$limit" ] && limit=$(left)
    if [ "$limit" -le 5 ]; then echo "$name: no time left" | tee -a "$out/steps.txt"; return; fi
    local start=$SECONDS code=0
    timeout --signal=INT --kill-after=10 "$limit" "$@" >"$out/$name.txt" 2>&1 || code=$?
    echo "$name: exit $code after $((SECONDS - start)) s" | tee -a "$out/steps.txt"
    tail -n 15 "$out/$name.txt"
}

# Editable, because the tests run from the root of the tree, where a plain install's fastgpt would be hidden by ./fastgpt.
$python -m pip install --quiet --no-deps --no-build-isolation -e . 2>&1 | tail -n 3
$python -c 'import torch; assert torch.cuda.is_available(), "no CUDA GPU here"' || exit 1
$python -m benchmarks.measure | tee "$out/environment.json"

if [ $# -gt 2 ]; then
    step full "$(left)" $python -m pytest "${@:3}" --benchmark -q -p no:cacheprovider --benchmark-rows="$out/full.jsonl"
    cat "$out/steps.txt"
    exit
fi

workers=$($python -c 'import importlib.util as u; print("-n 6" if u.find_spec("xdist") else "")')
# shellcheck disable=SC2086
step tests 190 $python -m pytest tests/kernels tests/fastgpt -q --maxfail=25 -m 'not slow' $workers -p no:cacheprovider
step benchmarks 230 $python -m pytest benchmarks --benchmark --quick -q -p no:cacheprovider \
    --benchmark-rows="$out/benchmarks.jsonl"
step sweep "$(left)" $python -m benchmarks.sweep --out "$out/sweep.jsonl" --seconds "$(($(left) - 10))"
cat "$out/steps.txt"
