"""--tensorboard, --wandb, --mlflow: read back by their own readers; servers that are not there, hang, or go away."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import error_of, read_json

from unet import cli, host
from unet.commands import run_callbacks
from unet.commands.crossval import Fold
from unet.config.schema import Config
from unet.errors import UnetError
from unet.runtime.callbacks.trackers import process, stream
from unet.tasks import registry

Tiny = Callable[..., tuple[int, str, str]]
KEY = "a" * 40


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No account, server or mode of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for the reader; the run sets it itself


@pytest.fixture
def hung() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for connection in kept:
            connection.close()


def logged(run: Path) -> dict[str, list[tuple[int, float]]]:
    """name -> (step, value) as metrics.jsonl has them, under the names that trackers use."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        kind = {"step": "train", "epoch": "epoch"}.get(line["event"])
        for name, value in line.items() if kind else ():
            if name in ("event", "step", "time") or isinstance(value, dict | str | bool | None):
                continue
            if kind == "train" and name == "epoch":
                continue
            group = "validation" if name == "score" or name.startswith("eval_") else kind
            found.setdefault(f"{group}/{name}", []).append((line["step"], value))
    return found


def wandb_records(path: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format in blocks of 32 kB, with wandb's own messages."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole, found = path.read_bytes(), 7, b"", []
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, last
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def wandb_history(records: list[Any]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if record.WhichOneof("record_type") != "history":
            continue
        row = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            if not name.startswith("_") and name != "step" and isinstance(value, int | float):
                found.setdefault(name, []).append((row["step"], value))
    return found


def mlflow_run(uri: str, name: str = "unet") -> tuple[Any, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1
    return client, runs[0]


def same(found: dict[str, list[tuple[int, float]]], wanted: dict[str, list[tuple[int, float]]]) -> None:
    for name, rows in wanted.items():
        assert [step for step, _ in found[name]] == [step for step, _ in rows], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in rows], rel=1e-6), name


def test_a_run_is_read_back_from_all_three_and_goes_on_as_the_same(tiny: Tiny, workplace: Path) -> None:
    """Numbers as in metrics.jsonl, settings and their sources, pictures, weights; resumed; nothing of the machine."""
    store = (workplace / "store").as_uri()
    words = ("--run-name", "a", "--log-every", 2, "--tensorboard", "--wandb", "--mlflow", "./store")
    code, _, err = tiny(*words, "--epochs", 1, "--track", "pictures", "weights")
    assert code == 0, err
    assert "--wandb: kept in" in err and "--mlflow: run" in err
    code, _, err = tiny_resume(tiny)
    assert code == 0, err
    run = Path("performance/a")
    number, wanted = read_json(run / "config.json")["run_id"], logged(run)
    assert {"train/loss", "train/lr", "train/images_per_second", "validation/score", "epoch/loss"} <= set(wanted)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0})
    board.Reload()
    same({name: [(e.step, e.value) for e in board.Scalars(name)] for name in board.Tags()["scalars"]}, wanted)
    assert "predictions" in board.Tags()["images"]
    assert b"| epochs | 1 | flag --epochs |" in board.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]

    client, kept = mlflow_run(store)
    assert (kept.info.status, kept.data.tags["unet.run_id"], kept.info.run_name) == ("FINISHED", number, "a")
    history = {name: client.get_metric_history(kept.info.run_id, name) for name in kept.data.metrics}
    same({name: sorted((m.step, m.value) for m in rows) for name, rows in history.items()}, wanted)
    assert kept.data.params["batch_size"] == "4"
    place = workplace / "store" / kept.info.experiment_id / kept.info.run_id / "artifacts"
    assert read_json(place / "settings.json")["batch_size"]["source"] == "flag --batch-size"
    assert (place / "weights/a.safetensors").exists() and (place / "pictures/predictions.png").exists()
    assert read_json(place / "summary.json")["best_score"] == read_json(run / "summary.json")["best_score"]

    parts = sorted(Path("performance/wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    assert len(parts) == 2  # the resumed run has the same id
    records = [record for path in parts for record in wandb_records(path)]
    same(wandb_history(records), wanted)
    config = {item.key: json.loads(item.value_json) for r in records for item in r.run.config.update}
    assert config["batch_size"] == {"value": 4, "source": "flag --batch-size"}

    assert set(kept.data.tags) == {"unet.run_id", "mlflow.runName", "task", "device"}
    assert {record.run.host for record in records if record.WhichOneof("record_type") == "run"} == {""}
    private = [word for word in (socket.gethostname(), getpass.getuser(), str(Path.cwd().parent)) if len(word) > 5]
    kept_files = [path for path in (workplace / "store").rglob("*") if path.suffix in (".json", "") and path.is_file()]
    for path in [*parts, *kept_files]:
        assert not [word for word in private if word.encode() in path.read_bytes()], path
    assert not list(Path("performance/wandb").rglob("wandb-metadata.json"))
    assert not list(Path("performance/wandb").rglob("requirements.txt"))


def tiny_resume(tiny: Tiny) -> tuple[int, str, str]:
    from unet.cli import main

    code = main(["train", "--resume", "--run-name", "a", "--epochs", "2", "--device", "cpu"])
    return code, "", ""


def test_servers_that_hang_do_not_hold_a_run(tiny: Tiny, hung: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", hung)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    words = ("--epochs", 1, "--run-name", "a", "--wandb", "online", "--mlflow", hung, "--track-wait", 1)
    begun: list[Any] = []
    start = process.ProcessSink.start
    monkeypatch.setattr(process.ProcessSink, "start", lambda sink, about: (begun.append(sink), start(sink, about))[1])
    ended: list[float] = []
    end = process.ProcessSink.end

    def timed(sink: Any, *values: Any) -> None:
        now = time.monotonic()
        try:
            end(sink, *values)
        finally:
            ended.append(time.monotonic() - now)

    monkeypatch.setattr(process.ProcessSink, "end", timed)
    code, _, err = tiny(*words)
    assert code == 0, err
    for name in ("--wandb", "--mlflow"):
        assert err.count(f"{name}: ") == 1, err
        assert f"{name}: It did not take everything within 1 s (--track-wait), and was ended." in err
    assert "The run goes on without it." in err
    assert len(ended) == 2 and max(ended) < 4
    assert read_json(Path("performance/a/status.json"))["status"] == "done"
    for sink in begun:
        assert sink.process.poll() is not None
        assert not left_of(sink.process.pid)


def left_of(session: int) -> list[str]:
    """Processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[3]) == session and words[0] != "Z":
            found.append(path.parent.name)
    return found


class Sink:
    """A sink that keeps what it gets, or raises."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.got = fails, list[str]()

    def __getattr__(self, event: str) -> Any:
        def take(*values: Any) -> None:
            self.got.append(event)
            if event == self.fails:
                raise OSError(28, "No space left on device")

        return take


@pytest.mark.parametrize("event", ["start", "scalars", "end"])
def test_a_sink_that_raises_is_told_once_and_left_alone(event: str, capsys: pytest.CaptureFixture[str]) -> None:
    sink = Sink(event)
    tracker = stream.Tracker("--mlflow", sink, None, {}, (), Path("w"))  # type: ignore[arg-type]
    for name in ("start", "scalars", "end", "scalars"):
        tracker.send(name)
    assert capsys.readouterr().err.count("--mlflow: OSError: [Errno 28] No space left on device") == 1
    assert sink.got[-1] == event and sink.got.count(event) == 1


def test_runs_go_on_and_fail_as_without_a_tracker(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose disk is full, and a run that fails in its second epoch: closed as failed."""
    monkeypatch.setattr(process, "ProcessSink", lambda *_: Sink("scalars"))
    code, _, err = tiny("--epochs", 1, "--run-name", "a", "--mlflow")
    assert code == 0 and err.count("No space left on device") == 1, err
    made, statuses = Sink(), list[str]()
    made.end = lambda status, summary: statuses.append(status)  # type: ignore[attr-defined]
    monkeypatch.setattr(process, "ProcessSink", lambda *_: made)
    monkeypatch.setattr("unet.runtime.trainer.optimizer_step", lambda run: 1 / 0)
    assert tiny("--epochs", 1, "--run-name", "b", "--mlflow")[0] == 1
    assert statuses == ["failed"]


def about() -> dict[str, Any]:
    return {"run": "a", "id": "0123456789abcdef", "group": None, "task": "t", "device": "CPU", "settings": {}}


def test_a_server_that_is_not_there_is_told() -> None:
    sink = process.ProcessSink("mlflow", {"uri": "http://127.0.0.1:9", "project": "p"}, 300)
    sink.start(about())
    with pytest.raises(UnetError, match=r"127\.0\.0\.1:9/api.*Connection refused"):
        sink.end("done", {})


def test_a_worker_that_is_killed_is_told_and_costs_nothing(tmp_path: Path) -> None:
    sink = process.ProcessSink("mlflow", {"uri": tmp_path.as_uri(), "project": "p"}, 30)
    sink.start(about())
    assert sink.process is not None
    os.killpg(sink.process.pid, signal.SIGKILL)
    sink.process.wait()
    end = time.monotonic() + 5
    with pytest.raises(UnetError, match="Its process has ended"):
        while time.monotonic() < end:
            sink.scalars(1, 0.0, {"a": 1.0})
            time.sleep(0.01)


def test_a_worker_that_stands_still_fills_a_queue_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MOST", 100)
    monkeypatch.setattr(process, "SLOW", 0.0)
    said: list[str] = []
    monkeypatch.setattr(host, "notice", said.append)
    sink = process.ProcessSink("mlflow", {"uri": tmp_path.as_uri(), "project": "p"}, 0.2)
    sink.start(about())
    assert sink.process is not None
    os.kill(sink.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    for step in range(5000):  # more than pipe and queue hold
        sink.scalars(step, 0.0, {"a" * 100: 1.0})
    assert time.monotonic() - began < 2
    assert sink.dropped > 1000 and len(said) == 1 and "no answer" in said[0]
    with pytest.raises(UnetError, match=r"within 0\.2 s .* events were left out"):
        sink.end("done", {})
    assert time.monotonic() - began < 5 and not left_of(sink.process.pid)


def test_a_run_that_is_killed_leaves_a_tracked_run_that_failed(tmp_path: Path) -> None:
    """The worker's input ends without a last event."""
    sink = process.ProcessSink("mlflow", {"uri": tmp_path.as_uri(), "project": "p"}, 60)
    sink.start(about())
    sink.scalars(3, 1.0, {"train/loss": 2.0})
    sink.queue.put(None)
    assert sink.process is not None and sink.process.wait(60) == 0
    client, kept = mlflow_run(tmp_path.as_uri(), "p")
    assert kept.info.status == "FAILED" and kept.data.metrics == {"train/loss": 2.0}
    assert client.get_metric_history(kept.info.run_id, "train/loss")[0].step == 3


def test_what_cannot_be_tracked(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--mlflow takes a folder or http://" in error_of(tiny("--mlflow", "ftp://x"), 2)
    assert "--wandb" in error_of(tiny("--wandb", "somewhere"), 2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = error_of(tiny("--epochs", 1, "--run-name", "a", "--mlflow"), 2)
    assert "--mlflow " in error and "pip install 'unet-accelerators[mlflow]'" in error
    assert not Path("performance/a").exists()


def test_nothing_is_tracked_that_was_not_typed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the variables of the libraries, and not by the config.json of another run; a resumed run goes on."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(process, "ProcessSink", lambda *_: pytest.fail("a tracker was started"))
    assert tiny("--dry-run", "--wandb", "online", "--mlflow")[0] == 0
    run = Path("performance/a")
    run.mkdir(parents=True)
    values = {"wandb": "online", "mlflow": "http://127.0.0.1:9", "track_group": "folds", "epochs": 3}
    settings = {name: {"value": value, "source": "flag"} for name, value in values.items()}
    (run / "config.json").write_text(json.dumps({"command": "", "settings": settings}))
    replayed = cli.resolve("train", ["--config", "performance/a/config.json"]).config
    assert (replayed.train.epochs, replayed.track.wandb, replayed.track.mlflow) == (3, None, None)
    resumed = cli.resolve("train", ["--resume", "--run-name", "a"]).config.track
    assert (resumed.wandb, resumed.mlflow, resumed.track_group) == ("online", "http://127.0.0.1:9", "folds")
    plain = cli.resolve("train", []).config.track
    assert (plain.wandb, plain.mlflow) == (None, None)


def test_folds_share_a_group() -> None:
    config = Config(registry.settings_of("lgg")()).replace(wandb="offline", mlflow="http://host")
    fold = Fold(2, "brains-x-fold2", Path("performance/brains-x-fold2"), Path("w.safetensors"))
    words = fold.command(Path("settings.json"), config, None)
    for pair in (["--wandb", "offline"], ["--mlflow", "http://host"], ["--track-group", "brains-x"]):
        at = words.index(pair[0])
        assert words[at : at + 2] == pair
    assert "--track-group" not in fold.command(Path("s.json"), config.replace(wandb=None, mlflow=None), None)


def test_paths_are_cut_to_their_last_part() -> None:
    value = {"data": "/home/jane/sets/kits", "source": "file ~/a/b.json", "weights": ["/x/y.pt", "a/b"], "n": 3}
    assert stream.without_folders(value) == {
        "data": "kits",
        "source": "file b.json",
        "weights": ["y.pt", "a/b"],
        "n": 3,
    }
    assert stream.without_folders("https://host/path/file") == "https://host/path/file"


def test_addresses_of_stores(tmp_path: Path) -> None:
    assert run_callbacks.store("local", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert run_callbacks.store("https://host", tmp_path) == "https://host"
    assert run_callbacks.store(str(tmp_path), tmp_path) == tmp_path.as_uri()
