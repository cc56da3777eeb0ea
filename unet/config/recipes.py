"""What a task changes of the defaults, what made data change of a task's, and the named recipes: data, no code."""

from __future__ import annotations

from typing import Any

VOLUME_TASKS = ("kits19",)

TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "lgg": {},
    "em": {
        "data": "em",
        "cache": "em_cache",
        "split": "none",
        "image_size": 572,
        "width": 64,
        "normalization": "none",
        "dropout": 0.5,
        "epochs": 10**6,
        "max_steps": 6400,
        "batch_size": 8,
        "eval_batch_size": 8,
        "weight_decay": 5e-4,
        "precision": "bf16",
        "seed": 123,
        "evaluate_every": 0,
        "log_every": 100,
        "benchmark_warmup": 200,
        "slices": 30,
        "side": 512,
    },
    "kits19": {
        "data": "kits19",
        "cache": "kits19_cache",
        "split": "mlperf",
        "layers": 5,
        "normalization": "instance",
        "epochs": 1,
        "batch_size": 2,
        "eval_batch_size": 1,
        "optimizer": "sgd",
        "lr": 1.0,
        "warmup_lr": 1e-4,
        "lr_gamma": 1.0,
        "target": 0.908,
        "seed": -1,
        "save_minutes": 5.0,
        "slices": 64,
        "side": 64,
    },
}
SYNTH_DEFAULTS: dict[str, dict[str, Any]] = {
    "lgg": {
        "data": "synthetic_kaggle_3m",
        "cache": "synthetic_cache",
        "epochs": 6,
        "batch_size": 16,
        "lr": 1e-3,
    },
    "em": {
        "data": "synthetic_em",
        "cache": "synthetic_em_cache",
        "image_size": 188,
        "layers": 3,
        "width": 8,
        "batch_size": 4,
        "eval_batch_size": 4,
        "max_steps": 300,
        "lr": 1e-3,
        "fold": 0,
        "benchmark_warmup": 10,
        "log_every": 20,
        "slices": 30,
        "side": 128,
    },
    "kits19": {
        "data": "synthetic_kits19",
        "cache": "synthetic_kits19_cache",
        "pad_to": (64, 64, 64),
        "patch": (64, 64, 64),
        "eval_patch": (64, 64, 64),
        "layers": 3,
        "width": 8,
        "batch_size": 1,
        "epochs": 20,
        "lr": 0.3,
        "evaluate_every": 10,
        "start_eval_at": 10,
    },
}
LARGE_BATCH = {  # what the fast submissions have in common
    "batch_size": 7,
    "brightness": (0.7, 1.3),
    "noise": (0.1, 0.1),
    "epochs": 10000,
}
CAMBRICON = {"lr": 3.2, "warmup_epochs": 200, "batch_size": 2, "epochs": 4000}
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "lgg": {
        "published": {
            "image_size": 256,
            "batch_size": 16,
            "epochs": 100,
            "lr": 1e-4,
            "optimizer": "adam",
            "split": "published",
            "aug_scale": 0.05,
            "aug_angle": 15.0,
        }
    },
    "em": {},
    "kits19": {
        "mlperf": {"lr": 0.8, "warmup_epochs": 200, "batch_size": 2, "epochs": 4000},
        "dgx": {**LARGE_BATCH, "lr": 2.0, "warmup_epochs": 1000, "precision": "auto"},
        "gaudi2": {
            **LARGE_BATCH,
            "lr": 1.5,
            "warmup_epochs": 1200,
            "lr_milestones": (1700,),
            "lr_gamma": 0.5,
            "precision": "bf16",
        },
        "cambricon-4": {**CAMBRICON, "start_eval_at": 1000, "evaluate_every": 20, "target": 0.908},
        "cambricon-8": {
            **CAMBRICON,
            "start_eval_at": 1400,
            "evaluate_every": 10,
            "target": 0.903,
            "lr_milestones": (1500, 3000),
            "lr_gamma": 0.5,
        },
    },
}
