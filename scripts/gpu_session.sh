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
#     scripts/gpu_session.sh OUT 200 study                  the whole grid of the depth study, in 3 minutes of an H100
#
# In this order, best first: both paths of attention against float64, `fastgpt verify`, headline timings, the tests
# marked `gpu`, benchmarks against the peers that compile nothing, against those that torch compiles, tile sweeps until
# the time is up. No failure stops what comes
# after it, and what a step leaves of its time goes to the next. Each step writes to OUT as it goes, so that a cut leaves
# what was done:
#
#     steps.txt          each step's exit status and time, and how many kernels and launchers it had to compile
#     log.txt            what all steps printed
#     headline.jsonl     the self-check, ceilings, headline figures, the profile of a training step
#     paths.jsonl        every test of attention by Hopper's kernels, and cases by both paths: as tests.jsonl
#     tests.jsonl        every test: outcome, seconds, message
#     errors.jsonl       every error against float64, beside its budget
#     benchmarks.jsonl   figures beside every peer
#     sweep.jsonl        times of other tiles than the tables'
#     study.json, .html  the depth study, where it was asked for
#     earlier-N.tar.gz   these files of the session before, where OUT had any: figures of two are never mixed
#
# `scripts/fold_results.py OUT` puts the figures into benchmarks/results/.
set -uo pipefail
unset CDPATH  # with which cd prints
cd "$(dirname "$0")/.." || exit 2
out=$(mkdir -p "${1:-out}" && cd "${1:-out}" && pwd) && [ -w "$out" ] ||
    { echo "error: OUT, ${1:-out}, is no folder that can be written to" >&2; exit 2; }
total=${2:-405}
[[ $total =~ ^[1-9][0-9]*$ ]] || { echo "error: SECONDS is $total, and must be a whole number of seconds" >&2; exit 2; }
slower=${SLOWER:-1}  # multiplies every step's share: for a dry run, whose GPU is a CPU
python=${PYTHON:-python3}
state=$(mktemp -d) && trap 'rm -rf "$state"' EXIT  # what one process leaves for the next
due=0  # by when, counted from the start, the present step must have ended

(   # by name: OUT may hold what is not ours
    cd "$out"
    old=(steps.txt log.txt study.{json,html,svg} {headline,paths,tests,errors,benchmarks,sweep,full}.jsonl sweep.begun)
    for file in "${old[@]}"; do [ -e "$file" ] && found+=("$file"); done
    [ -n "${found:-}" ] || exit 0
    number=1; while [ -e "earlier-$number.tar.gz" ]; do number=$((number + 1)); done
    tar -czf "earlier-$number.tar.gz" "${found[@]}" && rm "${found[@]}" &&
        echo "what $out had of an earlier session is in earlier-$number.tar.gz now"
) || { echo "error: OUT, $out, holds an earlier session's files that cannot be put away; name another folder" >&2; exit 2; }

export COLUMNS=250                                       # or pytest cuts off what a failure says
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/scripts/gpu/site${PYTHONPATH:+:$PYTHONPATH}"
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/fastgpt-triton-cache} TRITON_STORE_BINARY_ONLY=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}             # torch's own CPU work here is small, and 12 tests run at once
# The tree's own commit; without git, the one that the kernels were compiled from, if the tree is still that one.
sources() { find kernels fastgpt benchmarks -name '*.py' -type f 2>/dev/null | LC_ALL=C sort; }
tree() { sources | xargs -r sha256sum | sha256sum | cut -d' ' -f1; }
if [ -z "${FASTGPT_COMMIT:-}" ] && ! FASTGPT_COMMIT=$(git describe --always --dirty 2>/dev/null); then
    { read -r FASTGPT_COMMIT; read -r compiled_from; } 2>/dev/null <.gpu-cache/COMMIT
    [ -z "$FASTGPT_COMMIT" ] || [ "${compiled_from:-}" = "$(tree)" ] || FASTGPT_COMMIT+=-changed
fi
export FASTGPT_COMMIT
[ -n "$FASTGPT_COMMIT" ] || unset FASTGPT_COMMIT
export FASTGPT_GPU_STATE="$state/gpu_state.json"         # nvidia-smi is asked by the first process alone
export FASTGPT_BUDGET_REPORT="$out/errors.jsonl"         # errors are reported, and fail no test
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1                  # the machine has plugins that take seconds to import
pytest=(-q -p no:cacheprovider -p pytest_timeout)

say() { echo "$*" | tee -a "$out/steps.txt"; }
compiled() { find "$TRITON_CACHE_DIR" -name '*.cubin' 2>/dev/null | wc -l; }
launchers() { find "$TRITON_CACHE_DIR" -name '*.so' 2>/dev/null | wc -l; }

fit() {  # keep the log's two ends: a file of more than 16 MiB would not come back at all
    [ "$(stat -c %s "$out/log.txt")" -le $((12 << 20)) ] && return
    { head -c $((4 << 20)) "$out/log.txt"; printf '\n==== cut out ====\n'; tail -c $((4 << 20)) "$out/log.txt"; } >"$out/log.new"
    mv "$out/log.new" "$out/log.txt"
}

# step NAME SHARE COMMAND...: run it for SHARE seconds and what the steps before have left of theirs; a failure is noted
# and does not stop the rest. ALLOWED in the command stands for those seconds, less the time to end in.
step() {
    local name=$1 code=0 start=$SECONDS limit kernels stubs
    due=$((due + $2 * slower))
    limit=$(((due < total ? due : total) - SECONDS))
    shift 2
    if [ "$limit" -le 5 ]; then say "$name: no time left"; return 1; fi
    set -- "${@//ALLOWED/$((limit > 9 ? limit - 8 : 1))}"
    kernels=$(compiled) stubs=$(launchers)
    touch "$state/begun"; sleep 0.02  # by the clock of files, which ticks every 4 ms
    echo "==== $name: $*" >>"$out/log.txt"
    timeout --signal=INT --kill-after=5 "$limit" "$@" >>"$out/log.txt" 2>&1 || code=$?
    fit
    local did="kernels compiled: $(($(compiled) - kernels)), launchers built: $(($(launchers) - stubs))"
    if [ "$name" != cache ] && [ "$(compiled)" != "$kernels" ]; then
        echo "---- $name compiled:" >>"$out/log.txt"
        find "$TRITON_CACHE_DIR" -name '*.cubin' -newer "$state/begun" -printf '%f\n' | sort | uniq -c >>"$out/log.txt"
    fi
    [ "$name" = cache ] && did="kernels: $(compiled), launchers: $(launchers)"
    say "$name: exit $code after $((SECONDS - start)) s (of $limit); $did"
    return $code
}

# The same for a command that goes on where it was ended: again if the CUDA context broke or hung (70) or it crashed.
step_on() {
    local name=$1 code=0 tries=0
    step "$@" || code=$?
    shift 2
    while [ $((tries += 1)) -le 20 ]; do
        case $code in 70 | 134 | 136 | 139) ;; *) return $code ;; esac
        code=0
        step "$name-again" 0 "$@" || code=$?
    done
}

echo "figures are labelled ${FASTGPT_COMMIT:-with no commit}" | tee -a "$out/log.txt"
case ${FASTGPT_COMMIT:-} in *-changed) echo "(the sources are not those that the kernels were compiled from)" ;; esac
archive=${GPU_CACHE:-.gpu-cache/cache.tar.xz}
step cache 15 $python scripts/gpu/cache.py unpack "$archive" "$TRITON_CACHE_DIR"
tail -n 1 "$out/log.txt"

# Of what it trains, all but the findings stays on that machine. Two minutes of training; the rest are saves and measures.
study=($python -m fastgpt study depth --data .gpu-cache/tokens/train --val-data .gpu-cache/tokens/val --budget 2m
    --batch-size 32 --micro-batch 32 --saves 0 --runs-dir "$state" --name study --no-progress)
[ -z "${FASTGPT_FAKE_GPU:-}" ] || study=($python scripts/gpu/study.py kernels)  # nothing could be learned there
if [ "${3:-}" = study ]; then
    step study "$total" "${study[@]}"
    cp "$state"/study/study.* "$out" 2>/dev/null
    tail -n 40 "$out/log.txt"
    exit
fi

# One process for all files; where a peer breaks the context, another goes on behind it.
benchmark=($python -m pytest --benchmark "${pytest[@]}" -p pytest_benchmark.plugin -p tests.support.dead_gpu)
if [ $# -gt 2 ]; then
    step_on full "$total" "${benchmark[@]}" "${@:3}" --begun="$state/full" --benchmark-rows="$out/full.jsonl"
    tail -n 60 "$out/log.txt"
    exit
fi

# What tests share: attention first, by Hopper's kernels; later everything, as a user has it.
tested=("${pytest[@]}" -m 'gpu and not slow' -n "${WORKERS:-12}" --dist worksteal --max-worker-restart 200
    -p xdist.plugin -p tests.support.as_it_goes --continue-on-collection-errors --tb=short --timeout-method=thread)

# The shares add up to 405.
step paths 45 $python -m pytest tests/kernels/attention "${tested[@]}" -p tests.support.gluon \
    --timeout $((20 * slower)) --as-it-goes="$out/paths.jsonl"
case $? in 124 | 137)
    say "attention by Hopper's kernels had no end: the portable ones serve from here on"
    export FASTGPT_ATTENTION=triton ;;
esac
# Its own report is the judge's: written out for errors.jsonl too, every result would be rounded 8 times, not one in 14.
step verify 35 env -u FASTGPT_BUDGET_REPORT $python -m benchmarks.headline --only verify --out "$out/headline.jsonl"
step headline 110 $python -m benchmarks.headline --seconds ALLOWED --out "$out/headline.jsonl"
case $? in
    0) due=$((due + 20 * slower)) ;;
    69) say "torch finds no CUDA GPU here: nothing else could be measured, and the session ends"; exit 1 ;;
    # Once more if a kernel broke the CUDA context: it goes on with the section after that, unless that was the last.
    *) if grep -qs '"section": "train_step", "kind": "begin"' "$out/headline.jsonl"; then due=$((due + 20 * slower)); else
           step headline-again 20 $python -m benchmarks.headline --seconds ALLOWED --out "$out/headline.jsonl"; fi ;;
esac
# A signal would not interrupt a wait for the GPU: a test that hangs ends its worker, which xdist replaces.
step tests 85 $python -m pytest tests/kernels tests/fastgpt "${tested[@]}" \
    --timeout $((60 * slower)) --as-it-goes="$out/tests.jsonl"
# What compiles nothing is quick; one width, then a whole step, is what torch.compile has the time for, attention last:
# flex_attention compiles longest. Headline figures have shown attention's first peers already.
peers=("${benchmark[@]}" --quick --begun="$state/peers" --benchmark-rows="$out/benchmarks.jsonl")
step_on peers 55 "${peers[@]}" -k 'not compile and not math and not torch.float16' \
    benchmarks/test_{layer_norm,ffn,linear_cross_entropy,attention,train_step,block,generate}.py
step_on peers-compiled 30 "${peers[@]}" --dtype bfloat16 \
    -k 'compile and not 0.1 and not 50304 and (32768-768 or 16384-768 or gpt2 or 4096-64)' \
    benchmarks/test_{layer_norm,ffn,linear_cross_entropy,train_step,attention}.py
# Only tiles that came with the archive: to compile others takes longer than to measure them, and the GPU waits.
tiles=${SWEEP_TILES:-$(cat "$(dirname "$archive")/TILES" 2>/dev/null)}
step_on sweep "$total" $python -m benchmarks.sweep --out "$out/sweep.jsonl" --seconds ALLOWED \
    ${tiles:+--tiles "$tiles"}

timeout $((10 * slower)) $python scripts/gpu/summary.py "$out" || say "summary: exit $?"
cat "$out/steps.txt"
