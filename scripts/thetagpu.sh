#!/bin/bash
#COBALT -n 1
#COBALT -t 60
#COBALT -q full-node
#COBALT -A PROJECT
#COBALT --attrs filesystems=home,grand
# ThetaGPU: Cobalt, 8 A100 and 128 cores a node, Open MPI. Edit PROJECT, -n and -q above; type on a login node, in the
# repository:   RUN_NAME=lgg-64 scripts/thetagpu.sh --image-size 64 --epochs 25
# Cobalt warns nobody before it kills: --max-time is what is left of the job less MARGIN_MINUTES. Then qsub again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/job.sh"

job_id=${COBALT_JOBID:-}
hosts "${COBALT_NODEFILE:-}"
# mpirun gives the other nodes only the variables that -x names
launcher=(mpirun -hostfile "${COBALT_NODEFILE:-COBALT_NODEFILE}" -n $((8 * nodes)) --map-by ppr:8:node:PE=16
    --bind-to core -x PATH -x LD_LIBRARY_PATH -x MASTER_ADDR)
settings=(--device cuda --distributed)

seconds_left() {
    local now
    now=$(date +%s)
    echo $((${COBALT_ENDTIME:-$((now - SECONDS + 60 * WALL_MINUTES))} - now))
}

submit() {
    local name variables=''
    for name in RUN_NAME REQUEUES MAX_REQUEUES PYTHON WALL_MINUTES MARGIN_MINUTES; do
        variables+=${variables:+:}$name=${!name}
    done
    qsub -t "$WALL_MINUTES" --env "$variables" "$here/thetagpu.sh" "$@"
}

job "$@"
