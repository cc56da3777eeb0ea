# shellcheck shell=bash disable=SC2034,SC2154  # the scripts set and read some of the names
# What the job scripts share; sourced by them, not run. A script says what differs and ends with `job "$@"`:
#   job_id        the scheduler's number of this job; empty outside a job, where the script submits itself
#   launcher      the words before `python -m unet train`
#   settings      the machine's own flags after it; another device among the arguments replaces them
#   submit        puts the script, with its arguments, into the queue (again)
#   seconds_left  prints the seconds until the scheduler kills the job; defined where no USR1 comes before that
#
# USR1 means that the time is up: stop, save, start again later. TERM, INT and HUP mean that somebody ends the job (qdel,
# scancel, Ctrl-C, preemption): stop and save, but stay out of the queue. The launcher gets USR1 for all of them: mpirun
# and srun hand it to every process, whereas on TERM they kill what they started.

export PYTHON=${PYTHON:-python} RUN_NAME=${RUN_NAME:-} REQUEUES=${REQUEUES:-0} MAX_REQUEUES=${MAX_REQUEUES:-20}
export WALL_MINUTES=${WALL_MINUTES:-60} MARGIN_MINUTES=${MARGIN_MINUTES:-5}
asked='' child='' interrupted='' resuming='' code=0 words=() line=()

# Flags for several processes; of any device, and those that name another than the script's; for a first start alone.
several='distributed|use-horovod|devices|world-size|rank|local-rank|process-per-node|dist-url|cuda-devices'
elsewhere='device|cpu|no-hpu|no-cuda'
device="$elsewhere|hpu|mlu|cuda|use-lazy-mode"
anew='overwrite|rebuild-cache|im-cache'

say() { printf 'job: %s\n' "$*" >&2; }

# without PATTERN WORDS...: `words` = the WORDS less the options of these names and their values.
without() {
    local pattern=$1 dropping='' word
    shift
    words=()
    for word; do
        if [[ $word == --* ]]; then
            [[ ${word//_/-} =~ ^--($pattern)(=|$) ]] && dropping=1 || dropping=''
        fi
        [[ $dropping ]] || words+=("$word")
    done
}

# typed PATTERN WORDS...: whether one of these options is among the WORDS.
typed() {
    without "$@"
    ((${#words[@]} < $# - 1))
}

# value_of PATTERN WORDS...: what the last of these options is set to.
value_of() {
    local pattern=$1 previous='' value='' option word
    shift
    for word; do
        option=${word//_/-}
        if [[ $option =~ ^--($pattern)= ]]; then
            value=${word#*=}
        elif [[ $previous =~ ^--($pattern)$ ]]; then
            value=$word
        fi
        previous=$option
    done
    printf '%s' "$value"
}

# hosts FILE: `nodes` and MASTER_ADDR from a scheduler's list of hosts (a host may stand there once for each card).
hosts() {
    nodes=1
    [[ -r ${1:-} ]] || return 0
    nodes=$(sort -u "$1" | wc -l)
    MASTER_ADDR=$(head -n 1 "$1")
    export MASTER_ADDR
}

heed() {
    asked=$1 interrupted=1
    [[ -z $child ]] || kill -USR1 "$child" 2>/dev/null || true
}

# attempt COMMAND...: run it in the background, so that a signal is heeded at once and not at its end; `code` = its exit
# code. It has a process group of its own: Ctrl-C at a terminal would reach mpirun as well, which kills on it.
attempt() {
    set -m
    "$@" </dev/null &
    child=$!
    set +m
    [[ -z $asked ]] || heed "$asked" # it came before `child` was known
    while :; do
        interrupted='' code=0
        wait "$child" || code=$?
        [[ $interrupted ]] || break # else `wait` was left for the signal, and the command goes on
    done
    child=''
}

# dry_run ARGUMENTS...: one step on one process. A wrong setting is found before many cards wait for it, and the cache
# is made before the time of the run is counted.
dry_run() {
    without "$several|run-name|resume|max-time|$anew" "$@"
    attempt "$PYTHON" -m unet train "${words[@]}" --dry-run
}

# `line` = the command that starts the run, or goes on with it where its folder exists.
launch_line() {
    local folder left
    line=("${launcher[@]}" "$PYTHON" -m unet train "${settings[@]}")
    if declare -F seconds_left >/dev/null; then
        left=$(($(seconds_left) - 60 * MARGIN_MINUTES))
        ((left >= 6)) || left=6
        line+=(--max-time "$((left / 60)).$(printf '%02d' $((left % 60 * 100 / 60)))")
    fi
    folder=$(value_of 'out|log-dir|model-dir' "$@")
    resuming=''
    if [[ -f ${folder:-performance}/$RUN_NAME/config.json ]] && { ((REQUEUES)) || ! typed overwrite "$@"; }; then
        resuming=--resume
    fi
    without "run-name${resuming:+|resume|$anew}" "$@"
    line+=("${words[@]}" --run-name "$RUN_NAME" ${resuming:+"$resuming"})
}

# job ARGUMENTS...: what a script does, from the dry run to the queue.
job() {
    local name
    name=$(value_of run-name "$@")
    RUN_NAME=${name:-$RUN_NAME}
    if [[ -z $job_id && ${DRY_RUN:-} != 1 ]]; then
        submit "$@"
        exit
    fi
    RUN_NAME=${RUN_NAME:-run-${job_id:-dry}}
    ! typed "$elsewhere" "$@" || settings=()
    trap 'heed USR1' USR1
    trap 'heed TERM' TERM INT HUP
    launch_line "$@"
    if [[ ${DRY_RUN:-} == 1 ]]; then
        without "$device" "$@" # whatever device this machine has
        dry_run "${words[@]}" --device auto
        echo "launch line: $(printf '%q ' "${line[@]}")"
        exit "$code"
    fi
    if [[ -z $resuming ]]; then
        dry_run "${settings[@]}" "$@"
        if [[ $asked ]]; then
            code=130
        elif ((code)); then
            say "the dry run failed ($code), nothing was started"
            exit "$code"
        fi
        launch_line "$@" # the time has gone on
    fi
    if [[ -z $asked ]]; then
        say "start $((REQUEUES + 1)) of run $RUN_NAME: $(printf '%q ' "${line[@]}")"
        attempt "${line[@]}"
    fi
    finish "$@"
}

# finish ARGUMENTS...: leave with `code`, or put the script into the queue again.
finish() {
    ((code > 3)) || exit "$code" # done, failed, usage, typed --target not reached
    if [[ $asked == TERM ]]; then
        say "ended from outside ($code), not queued again; the same command goes on with run $RUN_NAME"
        exit "$code"
    fi
    # A process that USR1 met before it listened, or that its launcher ended after it had saved, has another code.
    if ((code != 130)) && [[ $asked != USR1 ]]; then
        say "the launcher ended with $code, not queued again"
        exit "$code"
    fi
    if ((REQUEUES >= MAX_REQUEUES)); then
        say "stopped and saved; not queued again: MAX_REQUEUES=$MAX_REQUEUES is reached"
        exit 130
    fi
    REQUEUES=$((REQUEUES + 1))
    if ! submit "$@"; then
        say "run $RUN_NAME is saved, but could not be queued again: submit the script by hand"
        exit 1
    fi
    exit 130
}
