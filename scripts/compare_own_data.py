"""The task `folder` and nnU-Net v2 on the same cases, for the same processor time.

    python scripts/compare_own_data.py prepare em|lgg DATA FOLDER
    python scripts/compare_own_data.py nnunet FOLDER em|lgg 2d|3d_fullres MINUTES

`prepare` writes DATA (the ISBI 2012 stacks, or LGG's kaggle_3m) into FOLDER/raw in nnU-Net's layout, with the split of
fold 0. `nnunet` needs the extra `peers`: nnU-Net's own plan, preprocessing, network, augmentation, loss and optimiser;
its schedule follows the processor time of training, so that it ends with MINUTES, and it spends none of it on
validation. Bind it to one core (taskset -c 0): its loader then works in its own process, and other work on the machine
changes nothing. Its masks of the validation cases, mirrored as its own command does, lie in FOLDER/masks-nnunet-NAME;
score them with

    python -m unet evaluate --predictions FOLDER/masks-nnunet-em --labels FOLDER/truth-em
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from unet.data import splits

DATASETS = {"em": "Dataset001_em", "lgg": "Dataset002_lgg"}
LGG_SPACING = (1.8, 1.8, 5.0)  # mm of a column, row and slice at 128 px: the set's files have none; TCGA-LGG's are near
FOLDS, SEED = 5, 2001


def prepare(name: str, data: Path, folder: Path) -> None:
    """Cases in nnU-Net's layout, fold 0 of 5, and the masks of its validation cases."""
    target = folder / "raw" / DATASETS[name]
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True, exist_ok=True)
    cases, ending, about = (em if name == "em" else lgg)(data, target)
    about |= {"numTraining": len(cases), "file_ending": ending}
    (target / "dataset.json").write_text(json.dumps(about, indent=1))
    chosen = splits.fold(cases, 0, FOLDS, SEED)
    split = [{"train": list(chosen["train"]), "val": list(chosen["validation"])}]
    (target / "splits_final.json").write_text(json.dumps(split, indent=1))
    truth = folder / f"truth-{name}"
    for part in ("truth", "images"):
        (folder / f"{part}-{name}").mkdir(exist_ok=True)
    for case in chosen["validation"]:
        shutil.copy(target / "labelsTr" / f"{case}{ending}", truth)
        for image in sorted((target / "imagesTr").glob(f"{case}_0*{ending}")):
            shutil.copy(image, folder / f"images-{name}")
    print(f"{len(chosen['train'])} cases to train on, {len(chosen['validation'])} to validate on, in {target}")


def em(data: Path, target: Path) -> tuple[list[str], str, dict[str, Any]]:
    """The 30 slices of the stack; membranes are class 1."""
    import imageio.v3 as imageio
    import tifffile

    images = tifffile.imread(data / "train-volume.tif")
    masks = tifffile.imread(data / "train-labels.tif")
    cases = [f"slice_{number:02}" for number in range(len(images))]
    for case, image, mask in zip(cases, images, masks, strict=True):
        imageio.imwrite(target / "imagesTr" / f"{case}_0000.png", image)
        imageio.imwrite(target / "labelsTr" / f"{case}.png", (mask == 0).astype(np.uint8))
    return cases, ".png", {"channel_names": {"0": "EM"}, "labels": {"background": 0, "membrane": 1}}


def lgg(data: Path, target: Path) -> tuple[list[str], str, dict[str, Any]]:
    """Every patient as a volume of three channels."""
    import nibabel
    import tifffile

    patients = sorted(folder for folder in data.iterdir() if folder.is_dir())
    affine = np.diag((*LGG_SPACING, 1.0))
    for patient in patients:
        paths = {int(path.stem.rsplit("_", 1)[1]): path for path in patient.glob("*.tif") if "_mask" not in path.name}
        slices = [paths[number] for number in sorted(paths)]
        image = np.stack([tifffile.imread(path) for path in slices])
        mask = np.stack([tifffile.imread(path.with_name(f"{path.stem}_mask.tif")) for path in slices]) > 0
        for channel in range(3):  # (slices, rows, columns) -> (columns, rows, slices)
            volume = nibabel.Nifti1Image(image[..., channel].T.copy(), affine)
            nibabel.save(volume, target / "imagesTr" / f"{patient.name}_{channel:04}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask.T.astype(np.uint8), affine), target / f"labelsTr/{patient.name}.nii.gz")
    names = {"0": "pre-contrast", "1": "FLAIR", "2": "post-contrast"}
    about = {"channel_names": names, "labels": {"background": 0, "tumour": 1}}
    return [patient.name for patient in patients], ".nii.gz", about


def nnunet(folder: Path, name: str, configuration: str, minutes: float) -> None:
    """nnU-Net's own way from the raw set to masks of the validation cases."""
    for variable in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{variable}"] = str((folder / variable).resolve())
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("nnUNet_n_proc_DA", str(cores if cores > 1 else 0))
    os.environ.setdefault("nnUNet_def_n_proc", str(cores))
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(cores)
    dataset = DATASETS[name]
    number = int(dataset[7:10])
    made = folder / "preprocessed" / dataset
    began = time.process_time()
    if not (made / "nnUNetPlans.json").exists():
        extract_fingerprints([number], num_processes=cores)
        plan_experiments([number])
    if not any(made.glob(f"nnUNetPlans_{configuration}/*.b2nd")):
        preprocess([number], configurations=(configuration,), num_processes=[cores])
    shutil.copy(folder / "raw" / dataset / "splits_final.json", made)
    print(f"prepared: {time.process_time() - began:.0f} s", flush=True)

    trainer = get_trainer_from_args(dataset, configuration, 0, device=torch.device("cpu"))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    steps, began, shown = 0, time.process_time(), 0.0
    while (spent := (time.process_time() - began) / 60) < minutes:
        for group in trainer.optimizer.param_groups:  # its schedule, by the time that is over
            group["lr"] = trainer.initial_lr * (1 - spent / minutes) ** 0.9
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        steps += 1
        if spent - shown > minutes / 60 or steps < 4:
            print(f"{spent:.2f} min, step {steps}, loss {loss:.4f}", flush=True)
            shown = spent
    batch = trainer.configuration_manager.batch_size
    patch = trainer.configuration_manager.patch_size
    print(f"{steps} steps of {batch} patches of {patch} in {minutes} min", flush=True)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    began = time.process_time()
    trainer.perform_actual_validation()
    print(f"predicted: {time.process_time() - began:.0f} s", flush=True)
    masks = folder / f"masks-nnunet-{name}"
    masks.mkdir(exist_ok=True)
    ending = json.loads((folder / "raw" / dataset / "dataset.json").read_text())["file_ending"]
    for mask in (Path(trainer.output_folder) / "validation").glob(f"*{ending}"):
        shutil.copy(mask, masks)
    os._exit(0)  # its loader's processes do not end by themselves


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == "prepare" and sys.argv[2] in DATASETS:
        prepare(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    elif len(sys.argv) == 6 and sys.argv[1] == "nnunet" and sys.argv[3] in DATASETS:
        nnunet(Path(sys.argv[2]), sys.argv[3], sys.argv[4], float(sys.argv[5]))
    else:
        sys.exit(__doc__)
