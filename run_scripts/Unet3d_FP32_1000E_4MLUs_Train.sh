#!/bin/bash
# Cambricon's training of UNet3D in fp32, 1000 epochs on 4 cards: see scripts/README.md. For example
#   export PYTORCH_TRAIN_DATASET=/data/KiTS19/pre_data_dir PYTORCH_TRAIN_CHECKPOINT=/data/checkpoints
#   bash run_scripts/Unet3d_FP32_1000E_4MLUs_Train.sh [SEED] [flags of python -m unet train]
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
train 1000 4 "$@"
