#!/bin/bash
# Checks one card with made data. First speed: the step of UNet3D with all levers on and each off in turn, the throughput
# of the other tasks; then what must be equal to the bit: recorded and not, resumed and straight. Then every task trains,
# resumes and predicts; precisions, compiled networks; what must be refused; memory that runs out.
#   scripts/gpu_check.sh [FOLDER] [MINUTES]
# It takes at most MINUTES (8) and writes into FOLDER (gpu_check), records into FOLDER/records. Type it again to go on:
# what has passed is not done twice. DEVICE (cuda) and PYTHON name the device and the interpreter; SMALL=1 takes small sizes, for a CPU.
# Exit code: 0 all has passed, 1 something has failed, 130 the time was over before the last check.
set -uo pipefail

if [[ ${1:-} == -* ]]; then
    sed -n '2,8s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
export PYTHON=${PYTHON:-python} DEVICE=${DEVICE:-cuda} SMALL=${SMALL:-} STEPS=8
end=$((SECONDS + ${2:-8} * 60)) failed=() left=()
mkdir -p "${1:-gpu_check}/checks" && cd "${1:-gpu_check}" || exit 1

unet() { "$PYTHON" -m unet "$@"; }

# train NAME TASK WORDS...: a short run with made data that repeats itself to the bit.
train() {
    unet train --task "$2" --synth-data --run-name "$1" --device "$DEVICE" --precision fp32 --deterministic --seed 1 \
        --max-steps "$STEPS" --overwrite "${@:3}"
}

# equal A B: the states of two runs, weights and optimiser, are the same bits. It prints the largest difference.
equal() {
    "$PYTHON" - "weights/$1.state.safetensors" "weights/$2.state.safetensors" <<'PY'
import sys

from safetensors.torch import load_file

one, other = map(load_file, sys.argv[1:])
assert set(one) == set(other)
worst = max((one[name].double() - other[name].double()).abs().max().item() for name in one)
print(f"largest difference of weights and optimiser: {worst:g}")
sys.exit(worst != 0)
PY
}

# refused PATTERN COMMAND...: it fails with an error that has these words.
refused() {
    local said
    said=$("${@:2}" 2>&1) && echo "it was not refused" && return 1
    printf '%s\n' "$said" | tail -n 2
    grep -q "^error: .*$1" <<<"$said"
}

task_trains() { train "$1" "$1"; }
task_resumes() {
    STEPS=$((STEPS / 2)) train "$1-cut" "$1" && unet train --resume --run-name "$1-cut" --max-steps "$STEPS" &&
        equal "$1" "$1-cut"
}
task_predicts() {
    unet predict --weights "$1.safetensors" "data/synthetic_${1/lgg/kaggle_3m}" --device "$DEVICE" --output "masks/$1" \
        --overwrite
}
precision() { train "$1-$2" "$1" --precision "$2"; }
compiled() { train "$1-compiled" "$1" --compile; }
recorded() { train "$1-recorded" "$1" --capture on && equal "$1" "$1-recorded"; }
recorded_accumulates() { refused '--accumulate' train "$1-accumulated" "$1" --capture on --accumulate 2; }
two_on_one_card() {
    CUDA_VISIBLE_DEVICES=0 refused 'it has 1 .* card' unet train --synth-data --run-name two --device "$DEVICE" \
        --devices 2 --max-steps 1
}
memory_runs_out() {
    refused 'ran out of memory\|takes at least' unet train --task kits19 --synth-data --device "$DEVICE" --run-name large \
        --patch 128 128 128 --pad-to 128 128 128 --width 32 --layers 5 --batch-size 128 --cache kits19_128 \
        --max-steps 1 --overwrite
}
# lever NAME WORDS...: the rate of UNet3D's step with these settings, with the loader as in any training.
lever() {
    local words=(--patch 128 128 128 --pad-to 128 128 128 --width 32 --layers 5 --batch-size 7 --precision bf16
        --cache kits19_128 --max-steps 60 --log-every 10 --benchmark-warmup 20)
    [[ ! $SMALL ]] || words=(--precision fp32 --batch-size 2 --max-steps 4 --log-every 2 --benchmark-warmup 2)
    unet train --task kits19 --synth-data --mode train --device "$DEVICE" --seed 1 --run-name "lever-$1" --overwrite \
        "${words[@]}" "${@:2}" && rate "performance/lever-$1/summary.json"
}
# rate FILE: what a run measured, in one line.
rate() {
    "$PYTHON" - "$1" <<'PY'
import json
import sys

found = json.load(open(sys.argv[1]))
rate = found["images_per_second"]
if isinstance(rate, dict):
    print(f"{rate['ours']:.2f} {found['item']}/s")
else:
    print(f"{rate:.2f} {found['item']}/s, data wait {found['data_wait_fraction']:.2%}")
PY
}
resumed_bf16() {
    STEPS=$((STEPS / 2)) train "$1-bf16-cut" "$1" --precision bf16 &&
        unet train --resume --run-name "$1-bf16-cut" --max-steps "$STEPS" && equal "$1-bf16" "$1-bf16-cut"
}
recorded_bf16() { train "$1-bf16-recorded" "$1" --precision bf16 --capture on && equal "$1-bf16" "$1-bf16-recorded"; }
plain_kernels() { train "$1-plain" "$1" --precision bf16 --kernels plain; }
throughput() {
    local words=(--rounds 3 --steps 10 --benchmark-warmup 10)
    [[ ! $SMALL ]] || words=(--rounds 1 --steps 1 --benchmark-warmup 1)
    unet benchmark --device "$DEVICE" --run-name "benchmark-$1" --overwrite "${words[@]}" "${@:2}" &&
        rate "performance/benchmark-$1/benchmark.json"
}
export -f unet train equal refused task_trains task_resumes task_predicts precision compiled recorded \
    lever rate resumed_bf16 recorded_bf16 plain_kernels recorded_accumulates two_on_one_card memory_runs_out throughput

# check NAME FUNCTION WORDS...: do it once, within the time that is left.
check() {
    local name=$1 seconds=$((end - SECONDS)) code=0
    [[ ! -e checks/$name.done ]] || return 0
    if ((seconds < 10)); then
        left+=("$name")
        return 0
    fi
    printf '%-28s' "$name"
    timeout "$seconds" bash -c '"$@"' check "${@:2}" >"checks/$name.log" 2>&1 </dev/null || code=$?
    if ((code == 124)); then
        left+=("$name")
        echo 'the time is over'
    elif ((code)); then
        failed+=("$name")
        echo "FAILED ($code), see checks/$name.log"
    else
        mv "checks/$name.log" "checks/$name.done"
        tail -n 1 "checks/$name.done"
    fi
}

# Speed. A processor records no graphs.
here=(--data-on device) graph=(--capture on) off=(--capture off)
[[ $DEVICE != cpu ]] || graph=() off=()
check lever-all lever all "${here[@]}" "${graph[@]}"
check lever-channels-first lever channels-first --layout NCDHW "${here[@]}" "${graph[@]}"
check lever-plain-kernels lever plain-kernels --kernels plain "${here[@]}" "${graph[@]}"
check lever-data-on-disk lever data-on-disk --data-on disk "${graph[@]}"
[[ $DEVICE == cpu ]] || check lever-not-recorded lever not-recorded "${here[@]}" "${off[@]}"
check lever-compiled lever compiled --compile "${here[@]}" "${graph[@]}"
check lever-none lever none --kernels plain --layout NCDHW --data-on disk "${off[@]}"
if [[ $SMALL ]]; then
    check lgg-throughput throughput lgg --task lgg --synth-data
else
    check lgg-throughput throughput lgg --task lgg --synth-data --image-size 256 --batch-size 16 --precision bf16
    check em-throughput throughput em --task em --synth-data --image-size 572 --width 64 --layers 4 --batch-size 8 \
        --precision bf16
    check brains-trains task_trains brains # it writes the data
    check brains-64-throughput throughput brains-64 --task brains --recipe 64 --precision bf16 \
        --data synthetic_brains --cache brains_64
fi

# What must be equal to the bit in the precision that is measured.
check kits19-bf16 precision kits19 bf16
check kits19-bf16-resumes resumed_bf16 kits19
[[ $DEVICE == cpu ]] || check kits19-bf16-recorded recorded_bf16 kits19
check kits19-plain plain_kernels kits19

for task in lgg em kits19 brains; do
    check "$task-trains" task_trains "$task"
    check "$task-resumes" task_resumes "$task"
    check "$task-predicts" task_predicts "$task"
    check "$task-bf16" precision "$task" bf16
done
if [[ $DEVICE != cpu ]]; then # what a processor does not have
    for task in lgg em kits19 brains; do
        check "$task-fp16" precision "$task" fp16
        check "$task-recorded" recorded "$task"
    done
    check recorded-accumulates recorded_accumulates lgg
    check two-on-one-card two_on_one_card
fi
check memory-runs-out memory_runs_out
check lgg-compiled compiled lgg
check kits19-compiled compiled kits19
if [[ ! $SMALL ]]; then
    check kits19-throughput throughput kits19 --task kits19 --synth-data --patch 128 128 128 --pad-to 128 128 128 \
        --width 32 --layers 5 --batch-size 7 --precision bf16 --cache kits19_128
    check brains-128-throughput throughput brains-128 --task brains --recipe 128 --batch-size 4 --precision bf16 \
        --checkpoint-activations --data synthetic_brains --cache brains_128
fi

# The record: what was measured, with its commands and environment.
{
    printf '# %s: throughput and checks\n\n    scripts/gpu_check.sh\n\n' "$DEVICE"
    for run in performance/benchmark-*/benchmark.json; do
        [[ -f $run ]] || continue
        name=$(basename "$(dirname "$run")" | sed s/^benchmark-//)
        printf '%s\n\n' "## $name"
        sed 's/^/    /' "checks/$name-throughput.done"
        echo
    done
    printf '## Checks\n\n| check | result |\n|---|---|\n'
    for name in checks/*.done; do
        printf '| %s | %s |\n' "$(basename "$name" .done)" "$(tail -n 1 "$name" | tr '|' '/')"
    done
} >README.md
"$PYTHON" - . <"$repository/scripts/card_records.py"
echo "${#failed[@]} failed, ${#left[@]} left: ${failed[*]} ${left[*]}"
((${#failed[@]} == 0)) || exit 1
((${#left[@]} == 0)) || exit 130
