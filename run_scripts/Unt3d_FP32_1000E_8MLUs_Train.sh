#!/bin/bash
# Unet3d_FP32_1000E_8MLUs_Train.sh, as Cambricon's table spells it.
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/Unet3d_FP32_1000E_8MLUs_Train.sh" "$@"
