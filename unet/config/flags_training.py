"""The flags of network, training and evaluation; the others are in `flags`. No torch."""

from __future__ import annotations

import dataclasses

from unet.config.flags import VOLUMES
from unet.config.options import option


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Network"""

    layers: int = option(4, "levels of the network", minimum=2, maximum=6)
    width: int = option(
        32, "features of the first level; each level doubles them (volumes: up to ten times the first)", minimum=1
    )
    normalization: str = option(
        "batch",
        "norm layers",
        choices=("batch", "instance", "none"),
        synonyms=(("batchnorm", "batch"), ("instancenorm", "instance")),
        tasks=("em", "kits19"),
    )
    activation: str = option("relu", "activation", choices=("relu", "leaky_relu"), tasks=("em", "kits19"))
    dropout: float = option(
        0.0, "share of the deepest level's values that is dropped in training", minimum=0, maximum=0.9, tasks=("em",)
    )
    context: str = option(
        "zero", "what lies around an image, zeros or its mirror image", choices=("zero", "mirror"), tasks=("em",)
    )


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Training"""

    epochs: int = option(25, "passes over the training cases", minimum=1, aliases=("--total_epochs",))
    max_steps: int | None = option(
        None, "stop after N optimiser steps of the whole run", minimum=1, aliases=("--train_steps",)
    )
    batch_size: int = option(64, "slices per step and device", minimum=1, maximum=10**6)
    accumulate: int = option(
        1, "batches whose gradients make one step", minimum=1, maximum=65536, aliases=("--ga_steps",)
    )
    optimizer: str = option("adam", "optimiser", choices=("sgd", "adam", "adamw", "adamax", "lamb"), metavar="NAME")
    lr: float = option(1e-4, "learning rate", above=0, maximum=1000, aliases=("--learning-rate",))
    momentum: float = option(0.9, "momentum of sgd (Nesterov)", minimum=0, maximum=1)
    weight_decay: float = option(0.0, "L2 penalty (adamw: decoupled)", minimum=0, maximum=100)
    lamb_betas: tuple[float, ...] = option((0.9, 0.999), "decay rates of lamb", minimum=0, maximum=0.999999)
    schedule: str = option(
        "constant", "learning rate over the run", choices=("constant", "cosine", "poly", "multistep"), metavar="NAME"
    )
    warmup_epochs: int = option(
        0, "epochs of linear warm-up from --warmup-lr", minimum=0, aliases=("--lr_warmup_epochs",)
    )
    warmup_lr: float = option(
        0.0, "learning rate at the start of the warm-up", minimum=0, maximum=1000, aliases=("--init_learning_rate",)
    )
    warmup_by: str = option("epoch", "the warm-up rises with each epoch, or with each step", choices=("epoch", "step"))
    lr_milestones: tuple[int, ...] = option(
        (), "epochs after which multistep multiplies the rate", minimum=1, aliases=("--lr_decay_epochs",)
    )
    lr_gamma: float = option(0.1, "factor of multistep", above=0, maximum=100, aliases=("--lr_decay_factor",))
    clip: float | None = option(
        None, "clip the gradient's norm", above=0, maximum=1e12, aliases=("--gradient_clipping_value",)
    )
    augment: bool = option(True, "random scale, rotation and flip; --no-augment turns it off")
    aug_scale: float = option(
        0.05,
        "scale U(1-s, 1+s); a half-width: the seed's factor 0.995 means 0.005, and is taken so",
        minimum=0,
        maximum=1,
        tasks=("lgg",),
    )
    aug_angle: float = option(15.0, "rotation U(-a, a) in degrees", minimum=0, maximum=180, tasks=("lgg",))
    aug_crop: float = option(
        0.3, "most that is cut off each side before the rest is stretched", minimum=0, maximum=0.45, tasks=("em",)
    )
    aug_brightness: float = option(0.2, "brightness U(-b, b) of a range of 2", minimum=0, maximum=1, tasks=("em",))
    cross_entropy: str = option(
        "softmax",
        "over both classes at once, or of each (the seed's)",
        choices=("softmax", "sigmoid"),
        tasks=("em",),
    )
    patch: tuple[int, ...] = option(
        (128, 128, 128),
        "crop that is trained on",
        minimum=1,
        maximum=4096,
        aliases=("--input_shape",),
        tasks=VOLUMES,
    )
    oversampling: float = option(0.4, "share of crops that hold a labelled region", minimum=0, maximum=1, tasks=VOLUMES)
    last_offset: bool = option(True, "crops reach the far edge (the reference's never do)", tasks=VOLUMES)
    brightness: tuple[float, ...] = option(
        (1.7, 2.3),
        "factor of one crop in ten (reference 1.7 2.3, MLPerf submissions 0.7 1.3)",
        minimum=0,
        maximum=100,
        tasks=VOLUMES,
    )
    noise: tuple[float, ...] = option(
        (0.0, 0.1),
        "sigma of one crop in ten (reference 0 0.1, MLPerf submissions 0.1 0.1)",
        minimum=0,
        maximum=100,
        tasks=VOLUMES,
    )
    include_background: bool = option(False, "the loss counts the background as a class", tasks=VOLUMES)
    target: float | None = option(
        None,
        "stop when the score (0 to 1) reaches this; not reached: exit code 3",
        minimum=0,
        maximum=1,
        aliases=("--quality_threshold",),
    )
    patience: int | None = option(None, "stop after N evaluations without a better score", minimum=1)
    max_time: float | None = option(None, "stop after N minutes, save, exit 130", above=0, maximum=1e7, metavar="MIN")
    evaluate_every: int | None = option(
        None,
        "epochs (em: steps) between evaluations; 0 = at the end",
        minimum=0,
        aliases=("--eval_every",),
        shown="1; em: 0; kits19: 20 epochs of 168 samples",
    )
    start_eval_at: int | None = option(
        None, "first epoch that is evaluated", minimum=1, shown="1; kits19: 1000 epochs of 168 samples"
    )
    epoch_samples: str = option(
        "dropped",
        "that schedule counts epochs without their short last batch, or padded to whole batches",
        choices=("dropped", "padded"),
        tasks=VOLUMES,
    )
    log_every: int = option(10, "steps between log lines; the only reads from the device", minimum=1)
    nonfinite_limit: int = option(3, "stop when the loss is not finite N times in a row", minimum=1)


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Evaluation"""

    eval_batch_size: int = option(
        64,
        "slices in a forward pass; the result does not depend on it",
        minimum=1,
        maximum=65536,
        aliases=("--test-batch-size",),
    )
    eval_patch: tuple[int, ...] = option(
        (128, 128, 128),
        "window of the inference",
        minimum=1,
        maximum=4096,
        aliases=("--val_input_shape",),
        tasks=VOLUMES,
    )
    overlap: float = option(
        0.5, "share of a window that the next one covers again", minimum=0, maximum=0.9, tasks=VOLUMES
    )
    eval_region: str = option(
        "rounded",
        "what evaluate scores, each side rounded to half windows as MLPerf does, or all (predict: always all)",
        choices=("rounded", "full"),
        tasks=VOLUMES,
    )
    blend: str = option("gaussian", "weights of overlapping windows", choices=("gaussian", "constant"), tasks=VOLUMES)
    mirror: bool = option(False, "mean over the eight mirrored inputs", aliases=("--tta",), tasks=VOLUMES)
    eval_loss: bool = option(True, "also compute the loss while scoring", tasks=VOLUMES)
    eval_crop: tuple[int, ...] = option(
        (),
        "score at most this crop around the labels during training; whole volumes at the end",
        minimum=1,
        maximum=4096,
        tasks=VOLUMES,
    )
    surface_tolerance: float = option(
        1.0, "mm within which surfaces agree (surface Dice)", above=0, maximum=1000, tasks=VOLUMES
    )
    eval_steps: int | None = option(None, "score at most N cases", minimum=1)
    bootstrap: int = option(10000, "resamples of the patients for the 95 % interval", minimum=100, maximum=10**6)
