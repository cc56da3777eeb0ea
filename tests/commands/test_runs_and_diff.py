"""`runs` lists the runs of a folder, `diff` compares two; neither changes anything, and --json prints one object."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, error_of

from unet.cli import main
from unet.commands import runs
from unet.files import digest

METRIC = {"metric": "dsc", "metric_title": "DSC", "metric_goal": "max"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """A folder with four runs: `first`, the same `again`, one with another learning rate, and one that is scored."""
    place = tmp_path_factory.mktemp("runs")
    words = ["--data", phantoms, "--cache", "cache_16", "--device", "cpu", "--deterministic", *TINY, "--log-every", 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, more in (("first", []), ("again", []), ("faster", ["--lr", "0.01"])):
            size = ["--workers", 0, "--threads", 1, "--epochs", 2, "--batch-size", 16, "--fold", 0, "--folds", 3]
            command = ["train", *words, *size, "--run-name", name, *more]
            assert main([str(word) for word in command]) == 0
        command = ["evaluate", "--weights", "first.safetensors", "--run-name", "scored", *words[:6]]
        assert main([str(word) for word in command]) == 0
    return place


@pytest.fixture
def cli_here(made: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(made)
    return cli


def state(folder: Path) -> str:
    """A digest of all names, contents and times below a folder."""
    paths = sorted(folder.rglob("*"))
    parts = [f"{path.relative_to(folder)} {path.stat().st_mtime_ns}".encode() for path in paths]
    return digest(*parts, *(path.read_bytes() for path in paths if path.is_file()))


def result_of(answer: tuple[int, str, str], code: int = 0) -> Any:
    """The one JSON object on standard output."""
    assert answer[0] == code, answer
    found = json.loads(answer[1])
    assert isinstance(found, dict)
    return found


def conclusion(out: str) -> str:
    """The last paragraph, as one line."""
    return " ".join(out.strip().rpartition("\n\n")[2].split())


def test_runs_are_listed_with_state_score_and_last_line(cli_here: Any, made: Path) -> None:
    before = state(made)
    code, out, err = cli_here("runs")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 5
    for line, name, kind in zip(
        lines[1:], ("scored", "faster", "again", "first"), ("evaluate", *["train"] * 3), strict=True
    ):
        assert line.split()[:4] == [name, "lgg", kind, "done"]  # newest first
    assert "epoch   2/2" in lines[-1]
    rows = result_of(cli_here("runs", "--json"))["runs"]
    assert rows[3]["score"] == json.loads((made / "performance/first/summary.json").read_text())["best_score"]
    assert rows[3]["seconds"] > 0
    assert state(made) == before


def test_scored_weights_bring_the_size_of_their_network(cli_here: Any, made: Path) -> None:
    stored = json.loads((made / "performance/scored/config.json").read_text())["settings"]["network"]
    assert {name: stored[name] for name in ("layers", "width")} == {
        "layers": {"value": 2, "source": "weights first.safetensors"},
        "width": {"value": 4, "source": "weights first.safetensors"},
    }
    settings = result_of(cli_here("diff", "first", "scored", "--json"))["settings"]
    assert not {"layers", "width"} & {item["name"] for item in settings}


def test_states_of_runs(made: Path, cli: Any, workplace: Path) -> None:
    """Running, and one that says so although its process is gone."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # as `python -m unet` would be"])
    for name, change in {
        "runs-on": {"status": "running", "pid": process.pid, "host": socket.gethostname()},
        "died": {"status": "running", "pid": 2**22 + 1, "host": socket.gethostname()},
        "far": {"status": "running", "pid": 2**22 + 1, "host": "another"},
        "failed": {"status": "failed", "why": "out of memory"},
        "broken": {},
    }.items():
        shutil.copytree(made / "performance/first", workplace / "performance" / name)
        path = workplace / "performance" / name / "status.json"
        content = {"kind": "train", **change, "updated": "2026-01-01T00:00:00+0000"}
        path.write_text(json.dumps(content) if change else "{")
    (workplace / "performance" / "no-run").mkdir()
    try:
        rows = {row["name"]: row["state"] for row in result_of(cli("runs", "--json"))["runs"]}
    finally:
        process.kill()
        process.wait()
    states = {"died": "died", "far": "running", "failed": "failed", "broken": "done"}
    assert rows == {"runs-on": "running", **states}
    again = {row["name"]: row["state"] for row in result_of(cli("runs", "--json"))["runs"]}
    assert again == {"runs-on": "died", **states}


def test_a_folder_without_runs(cli: Any, workplace: Path) -> None:
    assert "is no folder" in error_of(cli("runs"), 2)
    (workplace / "performance").mkdir()
    assert cli("runs") == (0, "performance: no runs\n", "")
    assert result_of(cli("runs", "--json")) == {"folder": "performance", "runs": []}


def test_the_records_are_listed(cli: Any) -> None:
    rows = result_of(cli("runs", "--records", "--out", ROOT / "performance", "--json"))["runs"]
    names = {row["name"].partition("/")[0] for row in rows}
    assert names == {path.name for path in (ROOT / "performance" / "records").iterdir()}
    scores = {row["name"].partition("_")[2]: row["score"] for row in rows}
    assert scores["cpu_em_ten-folds/disjoint"] and scores["cpu_kits19_best-against-mlperf/best"]
    assert "cpu_em_ten-folds" not in scores, "its settings alone are no run beside those of its folders"


def test_records_are_looked_for_where_the_repository_is(cli: Any, workplace: Path) -> None:
    error = error_of(cli("runs", "--records"), 2)
    assert "repository" in error and "--out" in error and "--synth-data" not in error


def test_the_same_run_twice_is_the_same_computation(cli_here: Any, made: Path) -> None:
    before = state(made)
    code, out, err = cli_here("diff", "first", "again")
    assert (code, err) == (0, "")
    assert "run_name  first" in out
    assert "no effect on the numbers" in out
    assert "Versions and code: the same" in out
    end = conclusion(out)
    assert end.startswith("The same computation: settings, code, versions and device are the same, and the losses")
    assert end.endswith("equal to the last bit.")
    found = result_of(cli_here("diff", "first", "performance/again", "--json"))
    assert (found["same"], found["losses"]["state"], found["losses"]["first_apart"]) == ("yes", "equal", None)
    assert found["scores"]["gain"] == 0
    assert [item["name"] for item in found["settings"]] == ["run_name", "weights"]
    assert state(made) == before


def test_another_learning_rate_is_another_computation(cli_here: Any) -> None:
    code, out, _ = cli_here("diff", "first", "faster")
    assert code == 0
    assert "  lr " in out
    assert "first not equal at step 2: A " in out  # the first step's loss is of the weights that both begin with
    assert conclusion(out).startswith("Not the same computation: lr differs, and the losses part at step 2")
    found = result_of(cli_here("diff", "first", "faster", "--json"))
    assert found["same"] == "no"
    scores = found["scores"]
    assert scores["gain"] == pytest.approx(scores["second"] - scores["first"])
    assert scores["how"] == "paired bootstrap over the cases of both"


@pytest.mark.parametrize(
    ("precision", "relative", "same", "words"),
    [
        ("fp32", 1e-8, "rounding", "The same computation up to rounding: the losses of all"),
        ("fp32", 1e-3, "no", "part at step 2 by more than 1e-06 of their value, with the same settings"),
        ("bf16", 1e-3, "rounding", "The same computation up to the rounding of bfloat16: the losses of all"),
        ("bf16", 5e-3, "no", "part at step 2 by more than 0.0039 of their value, with the same settings"),
        ("fp16", 3e-4, "rounding", "The same computation up to the rounding of float16: the losses of all"),
        ("auto", 1e-8, "rounding", "The same computation up to rounding: the losses of all"),  # float32 on this device
    ],
)
def test_losses_that_are_nearly_equal(
    made: Path, cli: Any, workplace: Path, precision: str, relative: float, same: str, words: str
) -> None:
    for name in ("a", "b"):
        changed_copy(made, workplace / "performance" / name, precision=precision)
    path = workplace / "performance/b/metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["event"] == "step" and row["step"] >= 2:
            row["loss"] *= 1 + relative
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = result_of(cli("diff", "a", "b", "--json"))
    assert (found["same"], found["losses"]["first_apart"][0]) == (same, 2)
    assert words in found["conclusion"]


def changed_copy(made: Path, to: Path, **values: Any) -> Path:
    """A copy of the run `first` with other settings."""
    shutil.copytree(made / "performance/first", to)
    config = json.loads((to / "config.json").read_text())
    for group in config["settings"].values():
        for name in values.keys() & group.keys():
            group[name]["value"] = values[name]
    (to / "config.json").write_text(json.dumps(config))
    about = json.loads((to / "environment.json").read_text())
    about["chosen"] |= {name: value for name, value in values.items() if name in about["chosen"] and value != "auto"}
    (to / "environment.json").write_text(json.dumps(about))
    return to


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ({"epochs": 9, "max_steps": 4, "target": 0.9, "patience": 9}, "yes"),
        ({"epochs": 9, "schedule": "poly"}, "no"),
        ({"threads": 9}, "rounding"),
        ({"save_minutes": 9.0, "dist_timeout": 9.0, "workers": "9", "drop_caches": True, "nonfinite_limit": 9}, "yes"),
        ({"eval_batch_size": 9}, "rounding"),
        ({"data_on": "ram"}, "no"),  # on a device some tasks then draw other noise
    ],
)
def test_settings_that_change_no_number(made: Path, cli: Any, workplace: Path, values: Any, same: str) -> None:
    changed_copy(made, workplace / "performance/a")
    changed_copy(made, workplace / "performance/b", **values)
    found = result_of(cli("diff", "a", "b", "--json"))
    assert sorted(item["name"] for item in found["settings"]) == sorted(values)
    assert found["same"] == same
    out = cli("diff", "a", "b")[1]
    if same == "rounding":
        (name,) = values
        what = "scores" if name == "eval_batch_size" else "losses and scores"
        assert f"rounding of {what} at most" in out
        verb = "differ" if name.endswith("s") else "differs"
        assert f"{name} {verb}, which changes {what} by rounding at most." in conclusion(out)
    if "max_steps" in values:
        assert "where a run stops" in out and conclusion(out).startswith("The same computation as far as both went:")


def test_the_format_that_the_device_chose_gives_the_limit(made: Path, cli: Any, workplace: Path) -> None:
    for name in ("a", "b"):
        path = changed_copy(made, workplace / "performance" / name, precision="auto")
        about = json.loads((path / "environment.json").read_text())
        assert about["chosen"]["precision"] == "fp32"
        about["chosen"]["precision"] = "bf16"
        (path / "environment.json").write_text(json.dumps(about))
    losses = result_of(cli("diff", "a", "b", "--json"))["losses"]
    assert (losses["precision"], losses["limit"]) == ("bf16", 2**-8)


def test_evaluations_of_other_weights_are_not_the_same(
    made: Path, cli_here: Any, phantoms: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    shutil.copy(made / "weights/first.safetensors", copy)
    place = ("--data", phantoms, "--cache", "cache_16", "--device", "cpu", "--out", tmp_path)
    for name, weights in (("one", "first.safetensors"), ("copied", copy), ("other", "faster.safetensors")):
        assert cli_here("evaluate", "--weights", weights, "--run-name", name, *place)[0] == 0
    found = result_of(cli_here("diff", tmp_path / "one", tmp_path / "other", "--json"))
    assert found["same"] == "no"
    assert [item["name"] for item in found["settings"] if item["effect"]] == ["weights"]
    found = result_of(cli_here("diff", tmp_path / "one", tmp_path / "copied", "--json"))
    assert [(item["name"], item["effect"]) for item in found["settings"]] == [("run_name", False), ("weights", False)]
    (tmp_path / "one/config.json").write_bytes((tmp_path / "other/config.json").read_bytes())
    found = result_of(cli_here("diff", tmp_path / "one", tmp_path / "other", "--json"))
    assert [item["name"] for item in found["settings"]] == ["weights"], "the same name, and another file"
    assert found["settings"][0]["first"] != found["settings"][0]["second"]


def test_how_the_device_was_chosen_changes_nothing_where_it_is_known(made: Path, cli: Any, workplace: Path) -> None:
    changed_copy(made, workplace / "performance/a")
    b = changed_copy(made, workplace / "performance/b", device="auto")
    found = result_of(cli("diff", "a", "b", "--json"))
    assert [(item["name"], item["effect"]) for item in found["settings"]] == [("device", False)]
    assert found["same"] == "yes"
    about = json.loads((b / "environment.json").read_text())
    (b / "environment.json").write_text(json.dumps(about | {"device": "another"}))
    found = result_of(cli("diff", "a", "b", "--json"))
    assert found["same"] == "rounding" and "with other device" in found["conclusion"]
    del about["device"]
    (b / "environment.json").write_text(json.dumps(about))
    found = result_of(cli("diff", "a", "b", "--json"))
    assert found["same"] == "yes" and "Not known of both runs: device." in found["conclusion"]


def test_what_auto_chose_is_compared(made: Path, cli_here: Any, phantoms: Path, tmp_path: Path) -> None:
    """--precision, --layout, --compile and --threads, left to the device or typed as it chose."""
    words = ["--data", phantoms, "--cache", "cache_16", "--device", "cpu", "--deterministic", *TINY, "--out", tmp_path]
    words += ["--workers", 0, "--epochs", 1, "--batch-size", 16]
    assert cli_here("train", *words, "--precision", "auto", "--run-name", "auto")[0] == 0
    chosen = json.loads((tmp_path / "auto/environment.json").read_text())["chosen"]
    typed = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    assert sorted(chosen) == ["compile", "layout", "precision", "threads"]
    assert cli_here("train", *words, *typed, "--run-name", "typed")[0] == 0
    found = result_of(cli_here("diff", tmp_path / "auto", tmp_path / "typed", "--json"))
    assert [item["name"] for item in found["settings"] if item["effect"]] == []
    assert found["same"] == "yes", found["conclusion"]
    for name in ("auto", "typed"):  # as runs before that was recorded
        about = json.loads((tmp_path / name / "environment.json").read_text())
        (tmp_path / name / "environment.json").write_text(json.dumps({**about, "chosen": None}))
    found = result_of(cli_here("diff", tmp_path / "auto", tmp_path / "typed", "--json"))
    assert found["same"] == "yes" and found["conclusion"].startswith("The same computation as far as is known")
    assert "Not known of both runs: compile, layout, precision, threads." in found["conclusion"]


def test_equal_settings_that_meant_other_formats_differ(made: Path, cli: Any, workplace: Path) -> None:
    for name, chosen in (("a", "bf16"), ("b", "fp32")):
        folder = changed_copy(made, workplace / "performance" / name, precision="auto")
        about = json.loads((folder / "environment.json").read_text())
        about["chosen"] = {**about.get("chosen", {}), "precision": chosen}
        (folder / "environment.json").write_text(json.dumps(about))
    found = result_of(cli("diff", "a", "b", "--json"))
    assert [(item["name"], item["first"], item["second"]) for item in found["settings"]] == [
        ("precision", "bf16", "fp32")
    ]
    assert found["conclusion"].startswith("Not the same computation: precision differs, and")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lr": 1.0}, "lr differs,"),
        ({"layers": 9}, "layers differ,"),
        ({"loss": "x"}, "loss differs,"),
        ({"layers": 9, "lr": 1.0}, "layers, lr differ,"),
    ],
)
def test_the_verb_of_settings_that_differ(
    made: Path, cli: Any, workplace: Path, values: dict[str, Any], expected: str
) -> None:
    changed_copy(made, workplace / "performance/a")
    changed_copy(made, workplace / "performance/b", **values)
    assert f"Not the same computation: {expected}" in conclusion(cli("diff", "a", "b")[1])


@pytest.mark.parametrize(("factor", "words"), [(1.5, "the losses part at epoch 1"), (1.0, "are equal to the last bit")])
def test_a_setting_that_one_log_does_not_tell_is_not_known_of_both(
    made: Path, cli: Any, workplace: Path, factor: float, words: str
) -> None:
    text = (made / "performance/first/first.txt").read_text()
    head, _, rest = text.partition("\n")
    assert "--seed" not in head and "--device cpu" in head
    (workplace / "a.txt").write_text(text)
    lines = [line.split(",") for line in rest.split("\n")]
    for cells in lines:
        if cells[0] == "train":
            cells[3] = f"{factor * float(cells[3]):.6f}"
    rest = "\n".join(map(",".join, lines))
    head = head.replace("--device cpu", "--device auto")
    (workplace / "b.txt").write_text(f"{head} --seed 5\n{rest}")
    code, out, _ = cli("diff", "a.txt", "b.txt")
    assert code == 0
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["seed"])
    assert " ".join(row) == "seed not known 5 not known of both"
    end = conclusion(out)
    assert words in end and "the same settings as far as is known" in end
    assert "Not known of both runs: device, seed" in end


def test_a_killed_run_is_compared_by_its_metric(made: Path, cli: Any, workplace: Path) -> None:
    killed = changed_copy(made, workplace / "performance/killed")
    changed_copy(made, workplace / "performance/whole")
    for name in ("summary.json", "cases.csv"):
        (killed / name).unlink()
    status = json.loads((killed / "status.json").read_text())
    assert {name: status[name] for name in METRIC} == METRIC
    scores = result_of(cli("diff", "killed", "whole", "--json"))["scores"]
    assert scores["gain"] is not None and "no two cases" in scores["how"]
    rows = result_of(cli("runs", "--json"))["runs"]
    assert [row["metric"] for row in rows] == ["DSC", "DSC"]
    (killed / "status.json").write_text(json.dumps(status | dict.fromkeys(METRIC, "")))  # of an earlier version
    scores = result_of(cli("diff", "killed", "whole", "--json"))["scores"]
    assert scores["how"] == "the metric of killed is not known, so they are not compared"


def test_an_evaluation_says_its_metric_when_it_starts(made: Path) -> None:
    status = json.loads((made / "performance/scored/status.json").read_text())
    assert {name: status.get(name) for name in METRIC} == METRIC


def test_one_shared_case_gives_a_difference_without_an_interval(made: Path, cli: Any, workplace: Path) -> None:
    for name, rows in (("a", "x,0.5\ny,0.6\n"), ("b", "y,0.7\nz,0.9\n"), ("c", "p,0.7\nq,0.9\n")):
        (changed_copy(made, workplace / "performance" / name) / "cases.csv").write_text(f"case,dsc\n{rows}")
    found = result_of(cli("diff", "a", "b", "--json"))["scores"]
    assert found["gain"] == pytest.approx(0.1)
    assert (found["first"], found["second"], found["low"], found["over"]) == (0.6, 0.7, None, 1)
    assert "B - A +0.1000 (the one case that both have, so no interval" in cli("diff", "a", "b")[1]
    assert "unpaired bootstrap" in result_of(cli("diff", "a", "c", "--json"))["scores"]["how"]


def test_other_code_and_versions_are_told(made: Path, cli: Any, workplace: Path) -> None:
    for name in ("a", "b", "old"):
        shutil.copytree(made / "performance/first", workplace / "performance" / name)
    about = json.loads((workplace / "performance/b/environment.json").read_text())
    assert len(about["code"]) == 16
    about["packages"]["torch"], about["code"] = "1.0", "0" * 16
    (workplace / "performance/b/environment.json").write_text(json.dumps(about))
    found = result_of(cli("diff", "a", "b", "--json"))
    assert [item["name"] for item in found["software"]] == ["code", "torch"]
    assert found["same"] == "rounding"
    assert "as far as the losses tell" in found["conclusion"] and "with other code, torch" in found["conclusion"]
    del about["code"]
    about["packages"]["torch"] = json.loads((made / "performance/first/environment.json").read_text())["packages"][
        "torch"
    ]
    (workplace / "performance/old/environment.json").write_text(json.dumps(about))
    found = result_of(cli("diff", "a", "old", "--json"))
    assert found["same"] == "yes"
    assert "as far as is known" in found["conclusion"] and "Not known of both runs: code" in found["conclusion"]


def test_damaged_runs_are_compared_with_what_is_left(made: Path, cli: Any, workplace: Path) -> None:
    """Half of metrics.jsonl, cut within a line, and a newer version: told, and nothing is changed."""
    for name in ("a", "b"):
        shutil.copytree(made / "performance/first", workplace / "performance" / name)
    cut = workplace / "performance/b"
    content = (cut / "metrics.jsonl").read_bytes()
    (cut / "metrics.jsonl").write_bytes(content[: content.index(b"\n", len(content) // 3) + 20])  # 20 bytes into a line
    (cut / "summary.json").write_text('{"best_sc')
    about = json.loads((cut / "environment.json").read_text()) | {"unet": "99.0.0"}
    (cut / "environment.json").write_text(json.dumps(about))
    before = state(workplace)
    code, out, _ = cli("diff", "a", "b")
    assert code == 0
    assert "(the file ends within it)" in out
    assert "summary.json: not whole" in out
    assert "written by version 99.0.0 of this program, newer than" in out
    assert result_of(cli("runs", "--json"))["runs"]
    assert state(workplace) == before


def test_our_own_log_is_compared_with_its_run(cli_here: Any) -> None:
    found = result_of(cli_here("diff", "first", "performance/first/first.txt", "--json"))
    assert (found["losses"]["unit"], found["losses"]["compared"]) == ("epoch", 2)
    assert "with other device" not in found["conclusion"], "the log has the name of the device alone"
    assert found["same"] == "rounding"  # six digits in the log


def test_what_is_no_run(cli_here: Any, made: Path, tmp_path: Path) -> None:
    assert "compares two runs, not 1" in error_of(cli_here("diff", "first"), 2)
    assert "Did you mean first?" in error_of(cli_here("diff", "frist", "again"), 2)
    assert "is no run: it holds none of" in error_of(cli_here("diff", tmp_path, "again"), 2)
    several = "2026-11-27_cpu_brains_benchmark-64"
    answer = cli_here("diff", several, "again", "--out", ROOT / "performance")
    assert "holds 4 runs" in error_of(answer, 2)


SCORED = ("--weights", "first.safetensors", "--cache", "cache_16", "--device", "cpu", "--run-name", "json")


@pytest.mark.parametrize(
    "words",
    [
        ("config", "--epochs", 3),
        ("doctor", "--device", "cpu"),
        ("check", "--cache", "cache_16"),
        ("evaluate", *SCORED),
    ],
    ids=lambda words: words[0],
)
def test_commands_that_print_a_table_take_json(cli_here: Any, phantoms: Path, words: tuple[object, ...]) -> None:
    more = ("--data", phantoms) if words[0] == "evaluate" else ()
    found = result_of(cli_here(*words, *more, "--json"))
    if words[0] == "config":
        assert found["epochs"] == {"value": 3, "source": "flag --epochs"}
    elif words[0] == "doctor":
        assert found["devices"]["cpu"]["usable"] is True
    elif words[0] == "check":
        assert (found["errors"], found["checked"][0]["kind"], found["checked"][0]["facts"]["cases"]) == (0, "cache", 6)
    else:
        assert [set(row) >= {"case", "dsc"} for row in found["scores"]] == [True] * found["cases"]


@pytest.mark.slow
def test_a_cross_validation_prints_one_object(made: Path, cli_here: Any, phantoms: Path) -> None:
    words = ("--data", phantoms, "--cache", "cache_16", "--device", "cpu", "--workers", 0, "--epochs", 1, *TINY)
    found = result_of(cli_here("crossval", *words, "--folds", 2, "--run-name", "folds", "--json"))
    assert (found["folds"], found["done"], len(found["by_fold"])) == (2, 2, 2)


def test_an_error_leaves_standard_output_empty(cli: Any) -> None:
    answer = cli("diff", "a", "b", "--json")
    assert answer[1] == ""
    error_of(answer, 2)


def test_the_last_change_is_told_in_the_time_of_this_machine(tmp_path: Path) -> None:
    """Runs of machines in several zones are sorted by it."""
    early = runs.updated(tmp_path, {"updated": "2026-11-28T02:50:00+0200"})
    late = runs.updated(tmp_path, {"updated": "2026-11-28T02:10:00+0100"})
    assert early < late
    assert runs.updated(tmp_path, {"updated": "2026-11-28T02:50:00"}) == "2026-11-28T02:50:00"
