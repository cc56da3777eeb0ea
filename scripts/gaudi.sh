#!/bin/bash
# One Gaudi node without a scheduler, 8 cards; in the repository:
#   RUN_NAME=lgg-64 scripts/gaudi.sh --image-size 64 --epochs 25
# Every SLICE_MINUTES the run is saved and the processes start afresh, MAX_REQUEUES times at most. Ctrl-C, or
# `kill -TERM` of this script, saves and ends; `kill -USR1` ends the slice. CARDS and CORES (a card) where they differ.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/job.sh"

job_id=$(date +%Y%m%d-%H%M%S)
MARGIN_MINUTES=0 # nobody kills at the end of a slice
launcher=(mpirun --allow-run-as-root --tag-output --merge-stderr-to-stdout --bind-to core
    --map-by "socket:PE=${CORES:-6}" -np "${CARDS:-8}")
settings=(--hpu --distributed)

seconds_left() { echo $((60 * ${SLICE_MINUTES:-240})); }

submit() { exec "$here/gaudi.sh" "$@"; } # the variables of job.sh are exported: run name and count go along

job "$@"
