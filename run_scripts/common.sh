# shellcheck shell=bash disable=SC2154  # scripts/job.sh sets `code`, `words` and the patterns of options
# What the one-key scripts share; sourced by them, not run:
#   train EPOCHS CARDS "$@"   all that a training script does; the rest is for Unet3d_Infer.sh:
#   begin KIND "$@"           places, seed, signals; `more` = the arguments that go to the program
#   own PATTERN FLAG...       a flag of the script, into `settings`, unless one of these options is among `more`
#   try COMMAND, run_timed, finish NAME
# Options are told apart, and the program is started and stopped, by scripts/job.sh. `${x[@]+...}`: an empty array is an
# error in the bash 4.2 of CentOS 7.

set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null && pwd)
# shellcheck source=scripts/job.sh
source "$here/../scripts/job.sh"
export PYTHONPATH="${here%/*}${PYTHONPATH:+:$PYTHONPATH}"

settings=() more=() seed='' seed_given='' cache='' kept='' start='' begun='' ended='' before=0
runs='out|log-dir|model-dir'

note() { printf 'unet3d: %s\n' "$*" >&2; }

refuse() {
    printf 'error: %s\n  %s\n' "$1" "$2" >&2
    exit 2
}

own() {
    local pattern=$1
    shift
    typed "$pattern" ${more[@]+"${more[@]}"} || settings+=("$@")
}

# The reference's format of a time; the language of the user may have no %r.
clock() { LC_ALL=C date -d "@$1" '+%Y-%m-%d %r'; }

# wrong VARIABLE FILES: what is wrong with a path in the environment; nothing where it is a folder (FILES: or a file).
wrong() {
    local path=${!1:-}
    if [[ ! $path ]]; then
        printf '%s is not set' "$1"
    elif [[ ! -e $path ]]; then
        printf '%s=%s does not exist' "$1" "$path"
    elif [[ ! -d $path && ! $2 ]]; then
        printf '%s=%s is not a folder' "$1" "$path"
    fi
}

# places FILES: `cache` and `kept`, absolute, from the two variables. Both mistakes are named at once.
places() {
    local data weights found mend=''
    data=$(wrong PYTORCH_TRAIN_DATASET '')
    weights=$(wrong PYTORCH_TRAIN_CHECKPOINT "$1")
    if [[ $data ]]; then
        mend="export PYTORCH_TRAIN_DATASET=DIR (python -m unet preprocess --task kits19 --cache DIR makes it)"
    fi
    if [[ $weights ]]; then
        mend+="${mend:+; }export PYTORCH_TRAIN_CHECKPOINT=DIR (mkdir -p DIR makes it; weights and logs go there)"
    fi
    [[ ! $mend ]] || refuse "$data${data:+${weights:+; }}$weights." "Type: $mend"
    cache=$(cd -- "$PYTORCH_TRAIN_DATASET" >/dev/null && pwd)
    found=("$cache"/case_*_x.npy)
    if [[ ! -e ${found[0]} && -d $cache/KiTS19/pre_data_dir ]]; then
        cache=$cache/KiTS19/pre_data_dir # the root of all data sets, which is what Cambricon's variable means
    fi
    kept=$PYTORCH_TRAIN_CHECKPOINT
    if [[ -d $kept ]]; then
        kept=$(cd -- "$kept" >/dev/null && pwd)
    else
        kept=$(cd -- "$(dirname -- "$kept")" >/dev/null && pwd)/$(basename -- "$kept")
    fi
}

# The seed is typed as --seed, or the first argument where that is a number, or SEED; else 0, as in Cambricon's scripts.
begin() {
    if [[ $1 == train ]]; then places ''; else places files; fi
    shift
    seed_given=${SEED:-}
    if [[ ${1:-} =~ ^-?[0-9]+$ ]]; then
        seed_given=$1
        shift
    fi
    more=("$@")
    seed=$(value_of seed "$@")
    seed=${seed:-${seed_given:-0}}
    trap 'heed USR1' USR1
    trap 'heed TERM' TERM INT HUP
}

# DRY_RUN=1: one step, on one process of whatever device this machine has, and the line that would be started.
try() {
    local any=auto
    ! typed "$elsewhere|device-module" ${more[@]+"${more[@]}"} || any=''
    without "hpu|mlu|cuda|$several|run-name|resume|max-time|$anew" "${settings[@]}" ${more[@]+"${more[@]}"}
    attempt "$PYTHON" -m unet "$1" "${words[@]}" ${any:+--device "$any"} --dry-run
    echo "launch line: $(printf '%q ' "${line[@]}")"
    exit "$code"
}

# Start `line`, with the words of MLPerf's run_and_time.sh.
run_timed() {
    begun=$(date +%s)
    start=${start:-$begun}
    echo "STARTING TIMING RUN AT $(clock "$begun")"
    note "$(printf '%q ' "${line[@]}")"
    attempt "${line[@]}"
    ended=$(date +%s)
    ((code)) || echo "ENDING TIMING RUN AT $(clock "$ended")"
}

# Leave with `code`: the RESULT line (seconds and first `start` of all the starts of the run), or why there is none.
finish() {
    local user=${USER:-$(id -un 2>/dev/null || id -u)}
    case $code in
        0) echo "RESULT,image_segmentation,$seed,$((before + ended - begun)),$user,$(clock "$start")" ;;
        3) note "no RESULT: $1 did not reach the typed --target (exit code 3)" ;;
        130) note "no RESULT: $1 was stopped and saved (exit code 130); the same command goes on with it" ;;
        *) note "no RESULT: $1 was aborted (exit code $code)" ;;
    esac
    exit "$code"
}

# earlier FILE FOLDER: `start` and `before` from the noted starts of a run: lines `begin SECONDS` and `end SECONDS`. A
# start without an end was killed: it lasted, as far as can be known, until the last line of the run's log.
earlier() {
    local word time last=''
    if [[ ! -f $1 ]]; then
        note "$1 is not there: RESULT will not count the time of the run's earlier starts"
        return
    fi
    last=$(tail -n 1 -- "$1")
    if [[ $last == begin* ]]; then
        time=$(stat -c %Y -- "$2/metrics.jsonl" 2>/dev/null) || time=0
        last=${last#begin }
        echo "end $((time > last ? time : last))" >>"$1"
    fi
    while read -r word time; do
        if [[ $word == begin ]]; then
            last=$time start=${start:-$time}
        else
            before=$((before + time - last))
        fi
    done <"$1"
}

# seed_of FOLDER: the seed of a run, which -1 draws.
seed_of() {
    "$PYTHON" -c 'import json, sys; s = json.load(open(sys.argv[1]))["settings"]; print(s.get("general", s)["seed"]["value"])' \
        "$1/config.json"
}

# Run folder and weights lie in PYTORCH_TRAIN_CHECKPOINT, where Unet3d_Infer.sh looks; a run that is there goes on.
train() {
    local epochs=$1 cards=$2 name folder times resuming=''
    shift 2
    begin train "$@"
    name=$(value_of run-name ${more[@]+"${more[@]}"})
    name=${name:-unet3d_${epochs}E_${cards}MLUs}
    folder=$(value_of "$runs" ${more[@]+"${more[@]}"})
    folder=${folder:-$kept}/$name
    times=$folder.times
    if [[ -f $folder/config.json ]] && ! typed overwrite ${more[@]+"${more[@]}"}; then
        resuming=--resume
        without 'resume|rebuild-cache|im-cache' ${more[@]+"${more[@]}"}
        more=(${words[@]+"${words[@]}"})
    fi
    own task --task kits19
    own recipe --recipe "cambricon-$cards"
    own "$elsewhere|hpu|mlu|cuda|device-module" --mlu
    own 'devices|distributed|use-horovod|world-size' --devices "$cards"
    own 'precision|amp|dtype' --precision fp32
    own epochs --epochs "$epochs"
    if [[ $(value_of loader ${more[@]+"${more[@]}"}) != synthetic ]]; then
        own 'cache|cache-path|results-dir|synth-data' --cache "$cache"
    fi
    if [[ ! $resuming || ($seed_given && $seed_given != -1) ]]; then
        own seed --seed "$seed" # else the run keeps the one that it has
    fi
    own "$runs" --out "$kept"
    own run-name --run-name "$name"
    own 'weights|weights-file|weights-files|save-ckpt-path' --weights "$kept/unet3d_${name#unet3d_}.safetensors"
    line=("$PYTHON" -m unet train "${settings[@]}" ${more[@]+"${more[@]}"} ${resuming:+"$resuming"})
    [[ ${DRY_RUN:-} != 1 ]] || try train
    if [[ $resuming ]]; then
        earlier "$times" "$folder"
        if [[ $start && ${#more[@]} == 0 ]] && grep -q '"status": *"done"' "$folder/status.json"; then
            note "$folder is done; --overwrite starts anew"
            seed=$(seed_of "$folder") code=0 begun=0 ended=0
            finish "$folder"
        fi
    else
        rm -f -- "$times"
        mkdir -p -- "${folder%/*}"
    fi
    echo "begin $(date +%s)" >>"$times"
    run_timed
    echo "end $ended" >>"$times"
    if [[ -f $folder/config.json ]]; then
        seed=$(seed_of "$folder")
    else
        rm -f -- "$times"
    fi
    finish "$folder"
}
