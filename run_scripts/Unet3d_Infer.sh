#!/bin/bash
# Scores what the training scripts wrote, on one card, and prints epoch, L1 dice, L2 dice, mean_dice and eval_loss:
#   export PYTORCH_TRAIN_DATASET=/data/KiTS19/pre_data_dir PYTORCH_TRAIN_CHECKPOINT=/data/checkpoints
#   bash run_scripts/Unet3d_Infer.sh [SEED] [flags of python -m unet evaluate]
# PYTORCH_TRAIN_CHECKPOINT is the folder of the training scripts (the newest weights in it are scored; before a run's
# first evaluation its state) or one file. See scripts/README.md.
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

newest() {
    local file best=''
    for file; do
        if [[ -f $file && (! $best || $file -nt $best) ]]; then best=$file; fi
    done
    printf '%s' "$best"
}

# `weights` = the file that PYTORCH_TRAIN_CHECKPOINT means.
find_weights() {
    weights=$kept
    [[ -d $kept ]] || return 0
    local file found=()
    for file in "$kept"/unet3d_*.safetensors "$kept"/unet3d_*.pth "$kept"/unet3d/unet3d_*.pth; do
        case $file in
            *.state*.safetensors | *-before.safetensors | *.epoch-*.safetensors) ;; # not the best weights
            *) found+=("$file") ;;
        esac
    done
    weights=$(newest "${found[@]}")
    [[ ! $weights ]] || return 0
    weights=$(newest "$kept"/unet3d_*.state.safetensors "$kept"/unet3d_*.state.pt)
    [[ $weights ]] || refuse "PYTORCH_TRAIN_CHECKPOINT=$kept holds no unet3d_*.safetensors." \
        "Train first: bash run_scripts/Unet3d_FP32_4000E_4MLUs_Train.sh, or name a file with --weights."
}

begin evaluate "$@"
own task --task kits19
own "$elsewhere|hpu|mlu|cuda|device-module" --mlu
own 'precision|amp|dtype' --precision fp32
if [[ $(value_of loader ${more[@]+"${more[@]}"}) != synthetic ]]; then
    own 'cache|cache-path|results-dir|synth-data' --cache "$cache"
fi
if ! typed 'weights|weights-file|weights-files|load|load-ckpt-path|checkpoint|save-ckpt-path' "$@"; then
    find_weights
    settings+=(--weights "$weights")
fi
if [[ -d $kept ]]; then out=$kept; else out=$(dirname -- "$kept"); fi
own "$runs" --out "$out"
own run-name --run-name "unet3d_infer-$(date +%Y%m%d-%H%M%S)"
line=("$PYTHON" -m unet evaluate "${settings[@]}" ${more[@]+"${more[@]}"})
[[ ${DRY_RUN:-} != 1 ]] || try evaluate
run_timed
folder=$(value_of "$runs" "${line[@]}")/$(value_of run-name "${line[@]}")
((code)) || "$PYTHON" "$here/print_scores.py" "$folder"
finish "$folder"
