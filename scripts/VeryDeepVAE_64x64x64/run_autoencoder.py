"""Trains the very deep VAE at 64 x 64 x 64 voxels.

hyper_params are those of the first version of 3d_very_deep_vae.

    python run_autoencoder.py --local_rank 0
    python -m torch.distributed.run --nnodes=1 --nproc_per_node=8 run_autoencoder.py

Flags of `python -m unet train --task brains` may follow; they override hyper_params. `--resume --run-name NAME` goes on
with a run, with the settings of that run.
"""

import json
import sys
import tempfile

from unet.cli import main

hyper_params = {
    "nifti_flair_dir": "brains",  # a path, or a name under data/
    "nii_target_shape": [64, 64, 64],
    "batch_size": 8,
    "total_epochs": 10,
    "random_seed": 3085977635,
    "CUDA_devices": [],  # ["0"], or [str(x) for x in range(8)]; empty: the cards that are visible
    "max_niis_to_use": None,
    "visualise_training_pipeline_before_starting": True,
    "keep_every_checkpoint": True,  # the weights of each epoch; False: only the best, and the state to resume from
    # Layers, from high to low resolution
    "latents_per_channel": [2, 6, 5, 4, 3, 2, 1],
    "channels_per_latent": [20, 20, 20, 20, 20, 20, 200],
    "channels": [20, 40, 60, 80, 100, 120, 140],
    "kernel_sizes_bottom_up": [3, 3, 3, 3, 3, 2, 1],
    "kernel_sizes_top_down": [3, 3, 3, 3, 3, 2, 1],
}

if __name__ == "__main__":
    words = sys.argv[1:]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(hyper_params, file)
        file.flush()
        if not any(word.startswith("--resume") for word in words):  # a run that goes on has settings of its own
            words = ["--config", file.name, *words]
        sys.exit(main(["train", "--task", "brains", *words]))
