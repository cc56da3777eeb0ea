#!/bin/bash
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Any SLURM cluster, one task a card. Edit the counts above; add partition and account; in the repository:
#   RUN_NAME=lgg-64 sbatch scripts/slurm.sh --image-size 64 --epochs 25
# SLURM sends USR1 to this shell (B:) 120 seconds before it kills; the shell hands it to srun, srun to its tasks. Then
# `scontrol requeue`: the job keeps its number. Raise 120 where a step, or saving, takes longer than a minute.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ -e $here/job.sh ]] || here=${SLURM_SUBMIT_DIR:-$PWD}/scripts # SLURM runs a copy of this file from its spool
source "$here/job.sh"

job_id=${SLURM_JOB_ID:-}
REQUEUES=${SLURM_RESTART_COUNT:-0} # SLURM counts, and a requeued job keeps the variables of its first start
# All cards of a node for each of its tasks: a task takes the one of its number.
# --kill-on-bad-exit: where one task has died, the others would wait for it. srun does not inherit --cpus-per-task.
launcher=(srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}")
settings=(--device cuda --distributed)

submit() {
    if [[ $job_id ]]; then
        scontrol requeue "$job_id"
    else
        sbatch "$here/slurm.sh" "$@"
    fi
}

job "$@"
