#!/bin/bash
# EM membranes: five folds, trained and scored, and their mean Dice, with the five arguments of Habana's script:
#   scripts/train_and_evaluate.sh <data> <results> <batch size> <precision> <number of devices> [more settings]
# The folds are the published ones; DEVICE (auto) names the accelerator. Type it again to go on after an interruption.
set -euo pipefail

if (($# < 5)); then
    sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
exec "${PYTHON:-python}" -m unet crossval --task em --data_dir "$1" --model_dir "$2" --batch_size "$3" --dtype "$4" \
    --devices "$5" --device "${DEVICE:-auto}" --fold-scheme seed --run-name unet2d "${@:6}"
