#!/bin/bash
#PBS -l select=1:system=polaris
#PBS -l place=scatter
#PBS -l walltime=01:00:00
#PBS -l filesystems=home:grand
#PBS -q debug
#PBS -A PROJECT
# Polaris: PBS, 4 A100 and 32 cores a node, PALS. Edit PROJECT, select and -q above; type on a login node, in the
# repository:   RUN_NAME=lgg-64 WALL_MINUTES=60 scripts/polaris.sh --image-size 64 --epochs 25
# PBS sends TERM seconds before it kills, too late to save: --max-time is what is left of WALL_MINUTES less
# MARGIN_MINUTES. Then qsub again.
set -euo pipefail
cd "${PBS_O_WORKDIR:-.}" # PBS starts in the home folder
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ -e $here/job.sh ]] || here=$PWD/scripts # `qsub scripts/polaris.sh` runs a copy elsewhere
source "$here/job.sh"

job_id=${PBS_JOBID:-}
job_id=${job_id%%.*}
hosts "${PBS_NODEFILE:-}"
launcher=(mpiexec -n $((4 * nodes)) --ppn 4 --depth 8 --cpu-bind depth)
settings=(--device cuda --distributed)

seconds_left() { echo $((60 * WALL_MINUTES - SECONDS)); }

# PBS hands arguments to a command after `--` only, and then reads no directives: they are given as options.
submit() {
    local options
    read -ra options -d '' < <(sed -n '/walltime/d; s/^#PBS //p' "$here/polaris.sh") || true
    qsub "${options[@]}" -l walltime=$((60 * WALL_MINUTES)) \
        -v RUN_NAME,REQUEUES,MAX_REQUEUES,PYTHON,WALL_MINUTES,MARGIN_MINUTES -- "$here/polaris.sh" "$@"
}

job "$@"
