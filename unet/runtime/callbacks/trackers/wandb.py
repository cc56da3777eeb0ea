"""--wandb: a run of Weights & Biases, kept on this machine (offline) or sent to its server (online).

Only what the events of a run hold is kept: no console, code, git, packages, host, or use of the machine, and the
library reports nothing of itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WeightsAndBiases:
    """Writes under `folder`/wandb. The run has this program's run id, so a resumed run goes on as the same."""

    def __init__(self, mode: str, project: str, folder: str) -> None:
        self.mode, self.project, self.folder = mode, project, folder
        self.run: Any = None
        self.where = self.later = ""

    def start(self, about: Mapping[str, Any]) -> None:
        os.environ.update(WANDB_ERROR_REPORTING="false", WANDB_SILENT="true", WANDB_MODE=self.mode)
        import wandb

        wanted: dict[str, Any] = {
            "mode": self.mode,
            "disable_git": True,
            "disable_code": True,
            "save_code": False,
            "console": "off",
            "silent": True,
            "disable_job_creation": True,
            "x_disable_stats": True,
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
            "host": "",
        }
        known = getattr(wandb.Settings, "model_fields", wanted)  # names with x_ differ between versions
        settings = {name: value for name, value in wanted.items() if name in known}
        self.run = wandb.init(
            project=self.project,
            id=about["id"],
            name=about["run"],
            group=about["group"],
            dir=self.folder,
            config={**about["settings"], "task": about["task"], "device": about["device"]},
            resume="allow",
            settings=wandb.Settings(**settings),
        )
        self.run.define_metric("*", step_metric="step")
        place = Path(self.run.settings.sync_dir).name
        self.where = self.run.url if self.mode == "online" else f"kept in {Path(self.folder, 'wandb', place)}"
        self.later = f"What it has is in {Path(self.folder, 'wandb', place)}; to send it: wandb sync DIR"

    def scalars(self, step: int, when: float, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def picture(self, step: int, name: str, path: str) -> None:
        import wandb

        self.run.log({"step": step, name: wandb.Image(path)})

    def file(self, path: str) -> None:
        import wandb

        artifact = wandb.Artifact(f"{self.run.id}-weights", "model")
        artifact.add_file(path)
        self.run.log_artifact(artifact)

    def end(self, status: str, summary: Mapping[str, Any]) -> None:
        for name, value in summary.items():
            self.run.summary[f"summary/{name}"] = value
        self.run.finish(exit_code=1 if status == "failed" else 0)
