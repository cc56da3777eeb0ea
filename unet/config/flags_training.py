"""The flags of network, training, evaluation and prediction; the others are in `flags`. No torch."""

from __future__ import annotations

import dataclasses

from unet.config.options import option

DICOM_SEG, NIFTI, BOTH = "dicom-seg", "nifti", "both"  # what is written for DICOM input


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Network"""

    layers: int = option(4, "levels of the network", minimum=2, maximum=6, common=True)
    width: int = option(
        32,
        "channels of the first level; each level doubles them (volumes: up to ten times the first)",
        minimum=1,
        common=True,
    )


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Training"""

    epochs: int = option(25, "passes over the training cases", minimum=1, aliases=("--total_epochs",), common=True)
    max_steps: int | None = option(
        None,
        "stop after N optimiser steps of the whole run",
        minimum=1,
        aliases=("--train_steps",),
        common=True,
    )
    batch_size: int = option(64, "slices per step and device", minimum=1, maximum=10**6, common=True)
    accumulate: int = option(
        1,
        "batches whose gradients are added up for one step",
        minimum=1,
        maximum=65536,
        aliases=("--ga_steps",),
        common=True,
    )
    optimizer: str = option(
        "adam", "optimiser", choices=("sgd", "adam", "adamw", "adamax", "lamb"), metavar="NAME", common=True
    )
    lr: float = option(1e-4, "learning rate", above=0, maximum=1000, aliases=("--learning-rate",), common=True)
    momentum: float = option(0.9, "momentum of sgd (Nesterov)", minimum=0, maximum=1)
    weight_decay: float = option(0.0, "L2 penalty (adamw: decoupled)", minimum=0, maximum=100)
    lamb_betas: tuple[float, ...] = option((0.9, 0.999), "decay rates of lamb", minimum=0, maximum=0.999999)
    schedule: str = option(
        "constant", "schedule of the learning rate", choices=("constant", "cosine", "poly", "multistep"), metavar="NAME"
    )
    warmup_epochs: int = option(
        0, "epochs of linear warm-up from --warmup-lr", minimum=0, aliases=("--lr_warmup_epochs",)
    )
    warmup_lr: float = option(
        0.0, "learning rate at the start of the warm-up", minimum=0, maximum=1000, aliases=("--init_learning_rate",)
    )
    warmup_by: str = option(
        "epoch", "raise the learning rate of the warm-up every epoch, or every step", choices=("epoch", "step")
    )
    lr_milestones: tuple[int, ...] = option(
        (), "epochs after which multistep multiplies the learning rate", minimum=1, aliases=("--lr_decay_epochs",)
    )
    lr_gamma: float = option(0.1, "factor of multistep", above=0, maximum=100, aliases=("--lr_decay_factor",))
    clip: float | None = option(
        None, "clip the norm of the gradients to this", above=0, maximum=1e12, aliases=("--gradient_clipping_value",)
    )
    skip_norm: float | None = option(
        None,
        "leave out a step where the norm of the gradients is not finite, or not below this",
        above=0,
        maximum=1e30,
        aliases=("--gradient_skipping_value",),
    )
    skip_warmup: int = option(
        50,
        "in the first N - 1 steps only norms that are not finite are skipped",
        minimum=0,
        aliases=("--warmup_iterations",),
    )
    skip_limit: int = option(20, "stop after N skipped steps in a row", minimum=1)
    ema: float | None = option(
        None, "score and keep a moving average of the weights with this decay (0.999)", above=0, maximum=0.999999
    )
    augment: bool = option(True, "random augmentation; --no-augment turns it off")
    target: float | None = option(
        None,
        "stop when the score (a Dice: 0 to 1) reaches this; if it is never reached, exit with code 3",
        aliases=("--quality_threshold",),
        common=True,
    )
    patience: int | None = option(None, "stop after N evaluations without a better score", minimum=1)
    max_time: float | None = option(
        None,
        "N minutes after its start the program saves, stops, and exits with code 130",
        above=0,
        maximum=1e7,
        metavar="MIN",
        common=True,
    )
    evaluate_every: int | None = option(
        None,
        "epochs between evaluations; 0 = only at the end",
        minimum=0,
        aliases=("--eval_every",),
        default_text="1",
        common=True,
    )
    start_eval_at: int | None = option(None, "first epoch that is evaluated", minimum=1, default_text="1")
    log_every: int = option(10, "steps between log lines (losses are read from the device only then)", minimum=1)
    nonfinite_limit: int = option(3, "stop after N non-finite losses in a row", minimum=1)


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Evaluation"""

    eval_batch_size: int = option(
        64,
        "slices per forward pass; changes the result by rounding alone",
        minimum=1,
        maximum=65536,
        aliases=("--test-batch-size",),
        common=True,
    )
    eval_steps: int | None = option(None, "score at most N cases", minimum=1)
    bootstrap: int = option(10000, "resamples of the patients for the 95 % interval", minimum=100, maximum=10**6)


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Plan"""

    plan_file: str = option(
        "plan.json",
        "file for the plan, which train --config takes",
        metavar="FILE",
        common=True,
        meant=("--output", "--out", "-o"),
    )
    hours: float | None = option(
        None,
        "hours that training may take on this machine: they choose --size, --epochs and --batch-size",
        above=0,
        maximum=10000,
        common=True,
    )


@dataclasses.dataclass(frozen=True)
class ScoringOptions:
    """Label maps of any program"""

    predictions: str | None = option(
        None,
        "score the label maps in this folder against those of --labels; needs no weights",
        metavar="DIR",
        common=True,
    )


@dataclasses.dataclass(frozen=True)
class LabelOptions:
    """Label maps"""

    labels: str | None = option(None, "folder of true label maps, of the same names", metavar="DIR", common=True)


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Prediction"""

    output: str = option("predictions", "folder for the masks; for one image also a file", metavar="DIR", common=True)
    overlay: bool = option(False, "also write PNG images with the outlines drawn in", common=True)
    probabilities: bool = option(False, "also write the probabilities as float TIFF", common=True)
    volumes: bool = option(False, "also write volumes.csv: voxels, ml or mm^2 of each class by case", common=True)
    series: str | None = option(
        None,
        "of a DICOM folder with several series: the one of this number (in the list that predict prints) or UID",
        metavar="NUMBER|UID",
        common=True,
    )
    format: str = option(
        DICOM_SEG,
        "what to write for DICOM input; other images get a mask in their own format",
        choices=(DICOM_SEG, NIFTI, BOTH),
        common=True,
    )
