#!/usr/bin/env bash
# Everything that a GPU can tell us, in one call of seven minutes, on a machine with torch, triton and pytest (with
# -xdist, -timeout and -benchmark), and no network. Nothing is installed, and next to nothing is compiled there.
#
#     make gpu-cache         before, on a machine of the same Python, torch and triton that needs no GPU: compiles the
#                            kernels into .gpu-cache/cache.tar.xz (make gpu-dry-run then tries all of this without a GPU)
#
#     run(command='scripts/gpu_session.sh "$OUT" 405', timeout_s=420, carry=[".gpu-cache"])       the device tool's call
#
#     scripts/gpu_session.sh [OUT] [SECONDS]                default: ./out, 405
#     scripts/gpu_session.sh OUT SECONDS BENCHMARKS...      only these, at all sizes: benchmarks/test_layer_norm.py
#
# In this order, best first: `fastgpt verify`, headline timings, the tests marked `gpu`, benchmarks against every peer,
# tile sweeps until the time is up. No failure stops what comes after it. Each step writes to OUT as it goes, so that a
# cut leaves what was done:
#
#     steps.txt          each step's exit status and time, and how many kernels and launchers it had to compile
#     log.txt            what all steps printed
#     headline.jsonl     the self-check, ceilings, headline figures, the profile of a training step
#     tests.jsonl        every test: outcome, seconds, message
#     errors.jsonl       every error against float64, beside its budget
#     benchmarks.jsonl   figures beside every peer
#     sweep.jsonl        times of other tiles than the tables'
#
# `scripts/fold_results.py OUT` puts the figures into benchmarks/results/.
set -uo pipefail
unset CDPATH  # with which cd prints
cd "$(dirname "$0")/.." || exit 2
out=$(mkdir -p "${1:-out}" && cd "${1:-out}" && pwd) && : >>"$out/log.txt" ||
    { echo "error: OUT, ${1:-out}, is no folder that can be written to" >&2; exit 2; }
total=${2:-405}
[[ $total =~ ^[1-9][0-9]*$ ]] || { echo "error: SECONDS is $total, and must be a whole number of seconds" >&2; exit 2; }
slower=${SLOWER:-1}  # multiplies every step's limit: for a dry run, whose GPU is a CPU
python=${PYTHON:-python3}

export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/scripts/gpu/site${PYTHONPATH:+:$PYTHONPATH}"
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/fastgpt-triton-cache} TRITON_STORE_BINARY_ONLY=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}             # torch's own CPU work here is small, and 12 tests run at once
# The tree's own commit; without git, the one that the kernels were compiled from.
export FASTGPT_COMMIT=${FASTGPT_COMMIT:-$(git describe --always --dirty 2>/dev/null || cat .gpu-cache/COMMIT 2>/dev/null)}
[ -n "$FASTGPT_COMMIT" ] || unset FASTGPT_COMMIT
export FASTGPT_BUDGET_REPORT="$out/errors.jsonl"         # errors are reported, and fail no test
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1                  # the machine has plugins that take seconds to import
pytest=(-q -p no:cacheprovider -p pytest_timeout)

say() { echo "$*" | tee -a "$out/steps.txt"; }
left() { echo $((total - SECONDS)); }
compiled() { find "$TRITON_CACHE_DIR" -name '*.cubin' 2>/dev/null | wc -l; }
launchers() { find "$TRITON_CACHE_DIR" -name '*.so' 2>/dev/null | wc -l; }

fit() {  # keep the log's two ends: a file of more than 16 MiB would not come back at all
    [ "$(stat -c %s "$out/log.txt")" -le $((12 << 20)) ] && return
    { head -c $((4 << 20)) "$out/log.txt"; printf '\n==== cut out ====\n'; tail -c $((4 << 20)) "$out/log.txt"; } >"$out/log.new"
    mv "$out/log.new" "$out/log.txt"
}

step() {  # step NAME MAX_SECONDS COMMAND...: run it within what is left; a failure is noted and does not stop the rest
    local name=$1 limit=$(($2 * slower)) code=0 start=$SECONDS kernels stubs
    shift 2
    [ "$(left)" -lt "$limit" ] && limit=$(left)
    if [ "$limit" -le 5 ]; then say "$name: no time left"; return 1; fi
    kernels=$(compiled) stubs=$(launchers)
    echo "==== $name: $*" >>"$out/log.txt"
    timeout --signal=INT --kill-after=5 "$limit" "$@" >>"$out/log.txt" 2>&1 || code=$?
    fit
    local did="kernels compiled: $(($(compiled) - kernels)), launchers built: $(($(launchers) - stubs))"
    [ "$name" = cache ] && did="kernels: $(compiled), launchers: $(launchers)"
    say "$name: exit $code after $((SECONDS - start)) s (of $limit); $did"
    return $code
}

step cache 40 $python scripts/gpu/cache.py unpack "${GPU_CACHE:-.gpu-cache/cache.tar.xz}" "$TRITON_CACHE_DIR"
tail -n 1 "$out/log.txt"

if [ $# -gt 2 ]; then
    step full "$total" $python -m pytest "${@:3}" "${pytest[@]}" -p pytest_benchmark.plugin --benchmark \
        --benchmark-rows="$out/full.jsonl"
    tail -n 60 "$out/log.txt"
    exit
fi

step verify 60 $python -m benchmarks.headline --only verify --out "$out/headline.jsonl"
step headline 120 $python -m benchmarks.headline --seconds 100 --out "$out/headline.jsonl"
case $? in
    0) ;;
    69) say "torch finds no CUDA GPU here: nothing else could be measured, and the session ends"; exit 1 ;;
    # Once more if a kernel broke the CUDA context: it goes on with the section after that.
    *) step headline-again 60 $python -m benchmarks.headline --seconds 50 --out "$out/headline.jsonl" ;;
esac
step tests 140 $python -m pytest tests/kernels tests/fastgpt -m 'gpu and not slow' -n "${WORKERS:-12}" \
    --dist worksteal "${pytest[@]}" -p xdist.plugin -p tests.support.as_it_goes --continue-on-collection-errors --tb=short --timeout 60 \
    --as-it-goes="$out/tests.jsonl"
# Operators first: under torch.compile, one of the models takes as long as all of the operators.
step peers 100 $python -m pytest benchmarks/test_{attention,layer_norm,ffn,linear_cross_entropy,train_step,block,generate}.py \
    --benchmark --quick "${pytest[@]}" -p pytest_benchmark.plugin \
    --benchmark-rows="$out/benchmarks.jsonl"
step sweep 600 $python -m benchmarks.sweep --out "$out/sweep.jsonl" --seconds "$(($(left) - 8))" \
    ${SWEEP_TILES:+--tiles "$SWEEP_TILES"}

timeout 10 $python scripts/gpu/summary.py "$out"
cat "$out/steps.txt"
