"""--mlflow URI: a run of MLflow, in a store on this machine (a folder, SQLite) or on a server.

Written through MLflow's client, which adds nothing of its own (no user, host, git or script), with its telemetry off.
The run is found again by the tag `unet.run_id`, so a resumed run goes on as the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TAG = "unet.run_id"
LONGEST = 500  # letters of a parameter, in every version of MLflow
MANY = 100  # parameters in a request
STATUS = {"done": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MLflow:
    """Writes into the experiment `project` of the store `uri`."""

    def __init__(self, uri: str, project: str) -> None:
        self.uri, self.project = uri, project
        self.client: Any = None
        self.id = self.where = self.later = ""

    def start(self, about: Mapping[str, Any]) -> None:
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", MLFLOW_ALLOW_FILE_STORE="true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        remote = urlsplit(self.uri).scheme in ("http", "https")
        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri if remote else None)
        found = self.client.get_experiment_by_name(self.project)
        place = self.files()
        number = found.experiment_id if found else self.client.create_experiment(self.project, artifact_location=place)
        same = self.client.search_runs([number], f"tags.`{TAG}` = '{about['id']}'", max_results=1)
        if same:
            self.id = same[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            tags = {TAG: about["id"], "task": about["task"], "device": about["device"]}
            tags |= {"group": about["group"]} if about["group"] else {}
            self.id = self.client.create_run(number, run_name=about["run"], tags=tags).info.run_id
        known = set(same[0].data.params) if same else set()  # a parameter cannot change
        params = [
            Param(name, json.dumps(item["value"])[:LONGEST])
            for name, item in about["settings"].items()
            if name not in known
        ]
        for first in range(0, len(params), MANY):
            self.client.log_batch(self.id, params=params[first : first + MANY])
        self.client.log_dict(self.id, dict(about["settings"]), "settings.json")
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "5"  # the run goes on meanwhile, and events wait
        self.where = f"run {self.id} of experiment {self.project}" + ("" if remote else f" in {self.uri}")

    def files(self) -> str | None:
        """The folder of the files of runs: beside a database on this machine; else MLflow's own place."""
        parts = urlsplit(self.uri)
        beside = parts.scheme == "sqlite"
        return (Path(parts.path[1:]).absolute().parent / "mlartifacts").as_uri() if beside else None

    def scalars(self, step: int, when: float, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        stamp = int(when * 1000)
        self.client.log_batch(self.id, metrics=[Metric(name, value, stamp, step) for name, value in values.items()])

    def picture(self, step: int, name: str, path: str) -> None:
        self.client.log_artifact(self.id, path, "pictures")

    def file(self, path: str) -> None:
        self.client.log_artifact(self.id, path, "weights")

    def end(self, status: str, summary: Mapping[str, Any]) -> None:
        self.client.log_dict(self.id, dict(summary), "summary.json")
        self.client.set_terminated(self.id, STATUS[status])
