"""The page: its conclusion, what it shows of runs that are incomplete, where it is written, its size."""

from __future__ import annotations

import html
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import error_of, start
from runs import write_pictures, write_run

from unet.benchmarks import breakdown
from unet.config import run_files
from unet.report.page import bars, bokeh_curves, document
from unet.report.page.conclusion import conclusions
from unet.report.page.folder import LIST
from unet.report.page.groups import differing, groups_of, is_running, shown
from unet.report.page.markup import duration, figure, file_name
from unet.report.run import Run, read

Cli = Callable[..., tuple[int, str, str]]
PATIENTS = {"p1": 0.41, "p2": 0.52, "p3": 0.63, "p4": 0.74, "p5": 0.85, "p6": 0.66, "p7": 0.57}
CALM = np.random.default_rng(4)
HIGHER = {case: value + 0.05 + 0.01 * float(CALM.standard_normal()) for case, value in PATIENTS.items()}


def words_of(*paths: Path) -> list[str]:
    runs = [run for path in paths for run in read(path)]
    return [words for conclusion in conclusions(groups_of(runs)) for words in (conclusion.words, *conclusion.more)]


def test_the_conclusion_of_two_runs(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {**PATIENTS, "only-a": 0.1})
    b = write_run(tmp_path / "b", HIGHER, settings={"lr": 0.01}, epochs=6)
    first, more = words_of(a, b)[:2]
    found = re.fullmatch(
        r"b scores (\S+) DSC higher than a \(95 % interval \+(\S+) to \+(\S+), 7 cases, paired bootstrap\)"
        r" and takes 0\.75 of the time\.",
        first,
    )
    assert found, first
    differences = np.array([HIGHER[case] - PATIENTS[case] for case in PATIENTS])
    mean, low, high = map(float, found.groups())
    assert mean == pytest.approx(differences.mean(), abs=5e-4)
    spread = 1.96 * differences.std() / math.sqrt(7)  # normal, which a mean of seven is nearly
    assert low == pytest.approx(differences.mean() - spread, abs=0.002)
    assert high == pytest.approx(differences.mean() + spread, abs=0.002)
    assert more.startswith(
        f"{figure(np.mean([*HIGHER.values()]))} against {figure(sum(PATIENTS.values()) / 8 + 0.0125)}"
    )


def test_an_interval_with_zero_is_no_clear_difference(tmp_path: Path) -> None:
    shaken = {case: value + sign * 0.1 for (case, value), sign in zip(PATIENTS.items(), [1, -1] * 4, strict=False)}
    words = words_of(write_run(tmp_path / "a", PATIENTS), write_run(tmp_path / "b", shaken, settings={"lr": 0.01}))
    assert words[0].startswith("No clear difference: b scores 0.014 DSC higher than a (95 % interval −0.0")
    assert "as long" in words[0]


def test_less_may_be_better(tmp_path: Path) -> None:
    lower = {"metric": "mse", "metric_title": "", "metric_goal": "min"}
    paths = [write_run(tmp_path / name, {}, summary=lower, settings={"lr": 1.0 + len(name)}) for name in ("a", "bb")]
    for path, factor in zip(paths, (1.0, 0.5), strict=True):
        lines = "".join(f"{case},{factor * value}\n" for case, value in PATIENTS.items())
        (path / "cases.csv").write_text("case,mse\n" + lines)
    assert ", which is better," in words_of(*paths)[0]
    assert " MSE lower than a" in words_of(*paths)[0]


def test_the_conclusion_of_one_run_and_of_its_seeds(tmp_path: Path) -> None:
    one = write_run(tmp_path / "net-1", PATIENTS)
    assert re.match(r"net-1 scores 0\.626 DSC \(95 % interval 0\.\d+ to 0\.\d+, 7 cases", words_of(one)[0])
    two = write_run(tmp_path / "net-2", HIGHER, settings={"seed": 2})
    assert "They differ only in their seed." in words_of(one, two)
    three = write_run(tmp_path / "net-3", PATIENTS, settings={"seed": 3})
    assert words_of(one, two, three)[0].startswith("net (3 seeds) scores")
    assert "0.626 to 0.67" in words_of(one, two, three)[0]
    other = write_run(tmp_path / "wide", HIGHER, settings={"width": 32})
    words = words_of(one, two, three, other)
    assert "wide scores" in words[0]
    assert "though single seeds overlap" in words[0]


def test_a_repeat_is_no_seed_and_no_difference_has_no_sign(tmp_path: Path) -> None:
    one, again = (write_run(tmp_path / name, PATIENTS) for name in ("r1", "r2"))
    words = words_of(one, again)
    assert words[0].startswith("r2 and r1 score the same DSC (95 % interval +0.000 to +0.000, 7 cases, paired")
    assert words[0].endswith("; r2 takes as long.")
    assert words[-1] == "They have the same settings and seed."
    turned = dict(zip(PATIENTS, reversed(PATIENTS.values()), strict=True))
    words = words_of(one, write_run(tmp_path / "r3", turned, settings={"seed": 2}))
    assert words[0].startswith("r3 and r1 score the same DSC in the mean (95 % interval −0.")
    assert words[-1] == "They differ only in their seed."
    more = write_run(tmp_path / "r4", PATIENTS)
    assert words_of(one, again, more)[0].startswith("r1 (3 runs) scores 0.626 DSC")
    assert "0.626 to 0.626 by run." in words_of(one, again, more)[0]


def test_evaluations_of_other_weights_are_neither_seeds_nor_repeats(tmp_path: Path) -> None:
    """Told apart by the digest of their weights, or by the names where a run does not know it."""

    def scored(name: str, weights: str, digest: str = "") -> Path:
        summary = {"weights_digest": digest} if digest else {}
        settings = {"weights": [weights]}
        return write_run(tmp_path / name, PATIENTS, epochs=0, settings=settings, summary=summary, kind="evaluate")

    def grouped(*paths: Path) -> list[list[str]]:
        return [[run.name for run in group.runs] for group in groups_of([run for path in paths for run in read(path)])]

    old = [scored(f"o{number}", f"m{number}.safetensors") for number in (1, 2, 3)]
    assert grouped(*old) == [["o1"], ["o2"], ["o3"]]
    assert "They have the same settings and seed." not in words_of(*old[:2])
    one, again, other = scored("a", "m.safetensors", "11"), scored("b", "copy.pt", "11"), scored("c", "copy.pt", "22")
    assert grouped(one, again, other) == [["a", "b"], ["c"]]
    same_name = groups_of([*read(again), *read(other)])
    assert differing(same_name) == ["weights"]
    assert [shown(group, "weights") for group in same_name] == ["copy.pt (digest 11)", "copy.pt (digest 22)"]
    trained = [write_run(tmp_path / f"t{n}", PATIENTS, settings={"seed": n, "weights": [f"t{n}.pt"]}) for n in (1, 2)]
    assert grouped(*trained) == [["t1", "t2"]], "training writes them"


def test_runs_on_one_device_are_repeats_however_it_was_chosen(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, PATIENTS, settings={"device": name}) for name in ("auto", "cpu")]
    assert words_of(*paths)[-1] == "They have the same settings and seed."
    for path in paths:
        (path / "environment.json").unlink()
    assert "They have the same settings and seed." not in words_of(*paths)


def test_runs_in_one_number_format_are_repeats_however_it_was_chosen(tmp_path: Path) -> None:
    def run(name: str, precision: str, chosen: str) -> Path:
        path = write_run(tmp_path / name, PATIENTS, settings={"precision": precision})
        about = json.loads((path / "environment.json").read_text())
        (path / "environment.json").write_text(json.dumps({**about, "chosen": {"precision": chosen}}))
        return path

    auto, typed, other = run("a", "auto", "bf16"), run("b", "bf16", "bf16"), run("c", "auto", "fp32")
    assert words_of(auto, typed)[-1] == "They have the same settings and seed."
    groups = groups_of([*read(auto), *read(other)])
    assert differing(groups) == ["precision"]
    assert [shown(group, "precision") for group in groups] == ["auto (bf16)", "auto (fp32)"]
    about = json.loads((typed / "environment.json").read_text())
    (typed / "environment.json").write_text(json.dumps({**about, "chosen": {"precision": "bf16", "threads": 9}}))
    assert len(groups_of([*read(auto), *read(typed)])) == 1, "threads change rounding only"
    before = write_run(tmp_path / "before", PATIENTS, settings={"precision": "auto"})  # it does not say what was chosen
    assert len(groups_of([*read(before), *read(auto)])) == 1
    assert len(groups_of([*read(before), *read(typed)])) == 2


def test_a_killed_run_is_compared_by_the_metric_of_its_status(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", PATIENTS)
    killed = write_run(tmp_path / "killed", {}, settings={"lr": 1.0}, status="running")
    (killed / "summary.json").unlink()
    assert words_of(killed, whole)[0].startswith(
        "whole and killed cannot be compared by score: the metric of killed is not known"
    )
    status = json.loads((killed / "status.json").read_text())
    status |= {"metric": "dsc", "metric_title": "DSC", "metric_goal": "max"}
    (killed / "status.json").write_text(json.dumps(status))
    assert words_of(killed, whole)[0].startswith("whole and killed score 0.626 and 0.667 DSC; without scores by case")


def test_the_best_of_many_against_the_first(tmp_path: Path) -> None:
    paths = [
        write_run(
            tmp_path / f"r{n}", {case: value + n % 3 / 20 for case, value in PATIENTS.items()}, settings={"lr": n}
        )
        for n in range(4)
    ]
    assert words_of(*paths)[0].startswith("The best of 4 against the first: r2 scores 0.100 DSC higher than r0 (")
    assert words_of(*paths[2:], *paths[:2])[0].startswith("The first of 4 is the best: r2 scores 0.050 DSC higher")


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", PATIENTS), write_run(tmp_path / "b", PATIENTS, task="em")
    assert words_of(a, b)[0] == "Runs of 2 tasks (lgg, em): scores of different tasks are not compared."
    c = write_run(tmp_path / "c", {"q1": 0.5, "q2": 0.6}, settings={"lr": 1.0})
    assert "share no case, so they are not compared" in words_of(a, c)[0]
    d = write_run(tmp_path / "d", PATIENTS, settings={"lr": 1.0}, summary={"metric": "loss", "metric_title": "loss"})
    assert "cannot be compared by score: they are scored by DSC and loss" in words_of(a, d)[0]
    e = write_run(tmp_path / "e", {"p1": 0.9}, settings={"lr": 1.0})
    assert "(1 shared case, so without an interval)" in words_of(a, e)[0]


def test_what_could_not_be_read_is_on_the_page(tmp_path: Path, cli: Cli) -> None:
    """A log whose last line is cut, a damaged table, settings that are no JSON, a newer version, pictures that are
    none, a folder that is no run, one that is given twice, two runs of one name; nothing of them is changed."""
    a = write_run(tmp_path / "runs/a", PATIENTS, pictured=["p1", "p2"])
    (a / "metrics.jsonl").write_bytes((a / "metrics.jsonl").read_bytes()[:-30])
    (a / "cases" / "p1.png").write_bytes(b"no picture")
    (a / "cases" / "p2.png").unlink()
    b = write_run(tmp_path / "runs/b", PATIENTS, settings={"lr": 1.0})
    (b / "cases.csv").write_text("case,dsc\np1,0.5\np2\n")
    (b / "environment.json").write_text(json.dumps({"unet": "99.0.0", "packages": {}}))
    c = write_run(tmp_path / "others/a", PATIENTS, settings={"lr": 2.0})
    (c / "config.json").write_text("{")
    (c / "cases").mkdir()
    (c / "cases/index.json").write_text('{"version": 1, "cases": [{"case": "p1", "file": "../../secret.png"}]}')
    (tmp_path / "empty").mkdir()
    before = state_of(tmp_path)
    code, _, err = cli("report", a, b, c, a, tmp_path / "empty", tmp_path / "nothing", "--page", "out/page.html")
    assert code == 0, err
    assert state_of(tmp_path, skip="out") == before
    text = (tmp_path / "out/page.html").read_text()
    part = text[text.index('<section id="omitted">') : text.index("</main>")]
    for words in (
        f"{a / 'metrics.jsonl'}, line 8: not a whole line (the file ends within it)",
        f"{b / 'cases.csv'}, line 3: 1 cells instead of 2",
        f"{b} was written by version 99.0.0 of this program, newer than",
        f"{c / 'config.json'}: not whole",
        f"{c / 'cases/index.json'}: cases[0] lacks",
        f"{a / 'cases/p1.png'}: not the picture of a case",
        f"{a / 'cases/p2.png'}: No such file",
        f"{tmp_path / 'empty'} is no run",
        f"{tmp_path / 'nothing'} does not exist",
        f"{a} was given more than once",
    ):
        assert words in part, words
        assert f"left out: {words}" in err, words
    assert "runs/a" in text and "others/a" in text, "runs of one name are told apart"


def state_of(folder: Path, skip: str = "-") -> dict[str, tuple[int, bytes]]:
    """The content and time of every file, and of every folder its time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if skip not in path.relative_to(folder).parts and path.parent != folder:
            found[str(path)] = (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
    return found


def test_one_folder_that_is_no_run_is_an_error(tmp_path: Path, cli: Cli) -> None:
    assert "is no run" in error_of(cli("report", tmp_path), 2)
    assert "does not exist" in error_of(cli("report", tmp_path / "nothing"), 2)
    assert "needs the folders of runs" in error_of(cli("report"), 2)
    assert not (tmp_path / "report").exists()
    (tmp_path / "x").mkdir()
    assert "holds a run" in error_of(cli("report", tmp_path / "x", tmp_path / "nothing"), 2)


def test_a_folder_of_the_same_name_does_not_hide_a_run(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "performance/hour", PATIENTS)
    write_run(tmp_path / "performance/records/old/part", PATIENTS)
    for name in ("hour", "old", "empty"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    assert "hour scores" in cli("report", "hour")[1]
    assert "equal to the last bit" in cli("diff", "hour", "hour")[1]
    assert "part scores" in cli("report", "old")[1]
    assert "empty is no run" in error_of(cli("report", "empty"), 2)
    write_run(tmp_path / "hour/own", PATIENTS)
    assert "own scores" in cli("report", "hour")[1], "what is typed comes first"


def test_files_of_others_are_not_overwritten(tmp_path: Path, cli: Cli) -> None:
    a = write_run(tmp_path / "runs/a", PATIENTS, pictured=["p1"])
    b = write_run(tmp_path / "runs/b", PATIENTS)
    (tmp_path / "report").mkdir()
    own = tmp_path / "report/cases.csv"
    own.write_text("mine")
    assert "cases.csv exists and was not written by report" in error_of(cli("report", a), 2)
    assert [path.name for path in (tmp_path / "report").iterdir() if path.suffix == ".html"] == []
    own.rename(tmp_path / "report/kept.csv")
    assert cli("report", a)[0] == 0
    assert (tmp_path / "report/lgg-a-p1.png").exists()
    assert cli("report", b)[0] == 0, "its own files are replaced"
    assert not (tmp_path / "report/lgg-a-p1.png").exists(), "what no longer belongs to the page goes"
    assert (tmp_path / "report/kept.csv").read_text() == "mine"
    page = tmp_path / "report/index.html"
    page.write_text(page.read_text() + "<!-- a note of mine -->")
    assert "index.html exists and was changed since" in error_of(cli("report", a), 2)
    assert page.read_text().endswith("<!-- a note of mine -->")


def test_a_page_of_another_name_does_not_replace_the_first(tmp_path: Path, cli: Cli) -> None:
    a, b = write_run(tmp_path / "a", PATIENTS), write_run(tmp_path / "b", HIGHER)
    assert cli("report", a, "--page", "report/index.html")[0] == 0
    before = {path: path.read_bytes() for path in Path("report").glob("[!.]*")}
    said = error_of(cli("report", b, "--page", "report/b.html"), 2)
    assert "holds another page, index.html" in said and "--page report/b/index.html" in said
    assert {path: path.read_bytes() for path in Path("report").glob("[!.]*")} == before
    assert cli("report", b, "--page", "report/b/index.html")[0] == 0
    Path("report/index.html").unlink()  # by the user: the folder is free for a page of another name
    assert cli("report", b, "--page", "report/b.html")[0] == 0
    assert not (tmp_path / "report/index.html").exists()


def test_a_page_in_the_folder_of_a_run_is_refused(tmp_path: Path, cli: Cli) -> None:
    a = write_run(tmp_path / "runs/a", PATIENTS)
    for place in (a / "index.html", a / "deep/index.html"):
        assert "is the folder of a run" in error_of(cli("report", a, "--page", place), 2)
    (tmp_path / "link").symlink_to(a)
    assert "is the folder of a run" in error_of(cli("report", a, "--page", tmp_path / "link/r/index.html"), 2)
    assert "not in .html" in error_of(cli("report", a, "--page", "report"), 2)


def test_json_is_all_that_is_printed(tmp_path: Path, cli: Cli) -> None:
    a, b = write_run(tmp_path / "a", PATIENTS), write_run(tmp_path / "b", HIGHER, settings={"lr": 0.01})
    code, out, _ = cli("report", a, b, tmp_path / "nothing", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["conclusions"][0]["cases"] == 7
    assert found["conclusions"][0]["low"] > 0
    assert found["settings_that_differ"] == {"lr": {"a": "0.001", "b": "0.01"}}
    assert len(found["omitted"]) == 1
    assert Path(found["page"]).is_file()
    assert [row[0] for row in found["tables"]["runs"]["rows"]] == ["a", "b"]


def test_a_long_page_stays_small(tmp_path: Path) -> None:
    """Eight runs of 1500 epochs with ten terms, 300 cases, and pictures that compress badly."""
    cases = {f"case_{number:04}": (number % 97) / 97 for number in range(300)}
    terms = [f"term_{letter}" for letter in "abcdefghij"]
    for number in range(8):
        path = tmp_path / f"run-{number}"
        write_run(path, cases, epochs=1500, settings={"lr": number}, terms=terms)
        write_pictures(path, ["case_0000", "case_0097", "case_0001", "case_0050"], cases, side=100)
    runs = [run for path in sorted(tmp_path.iterdir()) for run in read(path)]
    made = document.build(runs)
    assert len(made.page.encode()) < 3_000_000
    assert len(bokeh_curves.library()) < 1_400_000
    assert "these are only beside it" in made.page
    assert all(len(content) > 100 for content in made.beside.values())
    assert {"runs.csv", "cases.csv", "epochs.csv", "curve-lgg-score.png"} <= set(made.beside)
    assert made.beside["epochs.csv"].count(b"\n") == 8 * 1500 + 1, "the file beside it has every epoch"


def test_no_address_is_left_in_the_page(tmp_path: Path) -> None:
    page = document.build(read(write_run(tmp_path / "a", PATIENTS, pictured=["p1"]))).page
    found = set(re.findall(r"https?://[\w.-]+", page))
    assert not {name for name in found if re.search("cdn|jsdelivr|googleapis|unpkg", name)}, found
    assert not re.search(r"<(script|link|img|iframe)[^>]*\s(src|href)=\"?(https?:)?//", page)
    assert "default-src 'none'" in html.unescape(page)


def test_watch_writes_until_the_run_ends(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()  # unet"], stdin=subprocess.PIPE)
    folder = write_run(tmp_path / "runs/a", PATIENTS, epochs=3)
    status = {"pid": child.pid, "host": os.uname().nodename, "kind": "train"}
    (folder / "status.json").write_text(json.dumps({"status": "running", **status}))
    page = tmp_path / "report/index.html"
    watching = start("report", folder, "--watch", "--every", 1, cwd=tmp_path)
    try:
        wait_for(page.exists)
        assert 'http-equiv="refresh" content="1"' in page.read_text()
        assert "epoch 3 of 8 done" in page.read_text()
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.write('{"event": "epoch", "epoch": 4, "step": 40, "loss": 0.1, "train_seconds": 10.0}\n')
        wait_for(lambda: "epoch 4 of 8 done" in page.read_text())
        assert watching.poll() is None
        (folder / "status.json").write_text(json.dumps({"status": "done", **status}))
        assert watching.wait(20) == 0
        assert 'http-equiv="refresh"' not in page.read_text()
    finally:
        child.communicate()
        if watching.poll() is None:
            watching.kill()


def wait_for(what: Callable[[], bool], seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def test_the_list_of_own_files_is_checked(tmp_path: Path, cli: Cli) -> None:
    a = write_run(tmp_path / "runs/a", PATIENTS)
    assert cli("report", a)[0] == 0
    (tmp_path / "report" / LIST).write_text("[]")
    assert "expected an object" in error_of(cli("report", a))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.123"), (12.345, "12.35"), (1234.5, "1\u202f234"), (-0.5, "−0.500"), (4.7e-10, "0.000"), (None, "–")],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_durations() -> None:
    assert [duration(s) for s in (1.25, 90, 600, 36000)] == ["1.2 s", "90 s", "10 min", "10.0 h"]


def test_every_task_of_a_crossval_is_one_run(tmp_path: Path) -> None:
    """Its cases are pooled, its times added, its machine is that of its folds."""
    for fold in range(2):
        cases = {f"f{fold}-{case}": value for case, value in PATIENTS.items()}
        write_run(tmp_path / f"cv-fold{fold}", cases, settings={"fold": fold}, pictured=[f"f{fold}-p1"])
    whole = write_run(
        tmp_path / "cv",
        {},
        epochs=0,
        summary={"by_fold": [], "seconds": None, "best_score": None, "mean": {"dsc": 0.5}},
    )
    (whole / "environment.json").unlink()
    (whole / "status.json").write_text(json.dumps({"status": "done", "kind": "crossval"}))
    (run,) = read(whole)
    assert isinstance(run, Run)
    assert len(run.scores) == 14
    page = document.build([run])
    words = page.data["conclusions"][0]
    assert words["words"].startswith("cv scores 0.626 DSC in the mean over all cases of its folds (95 % interval")
    assert "The mean of its folds is 0.500 DSC." in words["more"]
    assert page.data["tables"]["runs"]["rows"][0][5] == "cpu, 2 threads"
    assert page.data["tables"]["runs"]["rows"][0][8] == 160.0
    starts = [name.rpartition("-")[0] for name in page.beside if name.startswith("lgg-cv")]
    assert {"lgg-cv_fold0-f0_p1", "lgg-cv_fold1-f1_p1"} <= set(starts)


def test_only_the_folds_of_a_crossval_are_its_folds(tmp_path: Path) -> None:
    for name in ("cv[1]-fold0", "cv[1]-fold1", "cv[1]-folded", "cv[1]-fold0-before", "cv1-fold0"):
        write_run(tmp_path / name, {f"{name}-p": 0.5})
    whole = write_run(tmp_path / "cv[1]", {}, epochs=0, summary={"by_fold": []})
    (whole / "status.json").write_text(json.dumps({"status": "done", "kind": "crossval"}))
    (run,) = read(whole)
    assert [fold.name for fold in run.folds] == ["cv[1]-fold0", "cv[1]-fold1"]


@pytest.mark.parametrize("text", ["case,dsc\ra,0.5\r", 'case,dsc\na,0.5\n"' + "x" * 200_000])
def test_a_damaged_table_of_cases_stops_nothing(text: str, tmp_path: Path, cli: Cli) -> None:
    damaged, sound = write_run(tmp_path / "a", PATIENTS), write_run(tmp_path / "b", PATIENTS)
    (damaged / "cases.csv").write_bytes(text.encode())
    runs = [run for path in (damaged, sound) for run in read(path)]
    assert runs[0].cases["a"]["dsc"] == 0.5
    assert len(runs[1].cases) == len(PATIENTS)
    assert bool(runs[0].omitted) == ("x" in text)
    assert cli("runs", "--out", tmp_path)[0] == 0


def test_words_of_a_run_are_no_part_of_the_page(tmp_path: Path) -> None:
    """In the table of machines and tasks too."""
    about = {"item": "<script>1</script>", "images_per_second": 9.0}
    a = write_run(tmp_path / "a", PATIENTS, summary=about)
    b = write_run(tmp_path / "b", PATIENTS, task="em", summary=about)
    page = document.build([run for path in (a, b) for run in read(path)])
    assert about["item"] not in page.page
    assert html.escape(about["item"]) in page.page


def test_the_parts_of_a_step_are_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", PATIENTS)
    parts = breakdown.summary({"forward": [0.25, 0.5, 0.75], "backward": [1.0, 1.0, 1.0]})
    (run / "benchmark.json").write_text(json.dumps({"breakdown": parts}))
    (found,) = read(run)
    assert bars.step_of(found) == {"forward": 0.5, "backward": 1.0}


def test_settings_that_are_none_are_passed_over() -> None:
    assert run_files.flat_settings({"train": True, "lr": {"value": 1}}) == {"lr": {"value": 1}}


def test_a_run_whose_process_is_gone_does_not_run(tmp_path: Path) -> None:
    """Its number may be another program's by now."""
    path = write_run(tmp_path / "a", PATIENTS, status="running")
    other = subprocess.Popen(["sleep", "60"])
    try:
        for pid, host, expected in ((other.pid, socket.gethostname(), False), (other.pid, "elsewhere", True)):
            (path / "status.json").write_text(json.dumps({"status": "running", "pid": pid, "host": host}))
            (run,) = read(path)
            assert is_running(run) is expected
    finally:
        other.kill()
        other.wait()


def write_benchmark(path: Path, result: dict[str, object]) -> Path:
    path.mkdir()
    (path / "status.json").write_text(json.dumps({"status": "done", "kind": "benchmark"}))
    (path / "benchmark.json").write_text(json.dumps({"task": "lgg", "item": "slices", **result}))
    return path


def test_benchmarks_of_training_and_of_prediction_are_told_apart(tmp_path: Path) -> None:
    over = {"median": 1.5, "min": 1.25, "max": 2.0}
    both = {"images_per_second": {"ours": 50.0, "plain": 40.0}, "ours_over_plain": over}
    trains = write_benchmark(tmp_path / "trains", {**both, "predict": {"images_per_second": 300.0}})
    assert words_of(trains) == ["trains trains 50.00 slices a second, 1.500 times the plain loop (1.250 to 2.000)."]
    slow, fast = (
        write_benchmark(tmp_path / name, {"predict": {"images_per_second": rate, "ours_over": over}})
        for name, rate in (("slow", 200.0), ("fast", 300.0))
    )
    alone = "fast predicts 300.0 slices a second, 1.500 times the plain network (1.250 to 2.000)."
    assert words_of(fast) == [alone]
    compared = (
        "No clear difference: fast is 1.500 times (1.250 to 2.000) as fast as the plain network on its own machine,"
    )
    compared += " slow 1.500 times (1.250 to 2.000). fast predicts 1.500 times as many slices a second as slow"
    compared += " (300.0 against 200.0)."
    alike = "The ranges of the ratios to the plain one overlap: these measurements do not tell them apart."
    assert words_of(slow, fast) == [compared, alike]
    assert words_of(trains, fast) == [f"{words_of(trains)[0]} {alone}"]
    assert words_of(trains, slow, fast) == [f"{words_of(trains)[0]} {compared}", alike]
    rates = {"images_per_second": {"ours": 640.0}, "mode": "predict", "predict": {}}
    assert words_of(write_benchmark(tmp_path / "two", rates)) == ["two predicts 640.0 slices a second."]


def a_benchmark(path: Path, rates: list[float], ratios: list[float]) -> Path:
    """Of training: the lowest, median and highest rate, and so its ratio to the plain loop."""
    low, rate, high = rates
    over = dict(zip(("min", "median", "max"), ratios, strict=True))
    about = {"images_per_second": {"ours": rate}, "images_per_second_range": {"ours": [low, high]}}
    return write_benchmark(path, {**about, "ours_over_plain": over, "share_of_matrix_product": 0.125})


def test_two_benchmarks_are_told_apart_where_their_rounds_are(tmp_path: Path) -> None:
    a = a_benchmark(tmp_path / "a", [40.0, 50.0, 60.0], [1.0, 1.1, 1.2])
    b = a_benchmark(tmp_path / "b", [55.0, 75.0, 80.0], [1.3, 1.4, 1.5])
    c = a_benchmark(tmp_path / "c", [70.0, 75.0, 80.0], [1.15, 1.4, 1.5])
    rates = "b trains 1.500 times as many slices a second as a (75.00, 55.00 to 80.00 against 50.00, 40.00 to 60.00)."
    ratios = "b is 1.400 times (1.300 to 1.500) as fast as the plain loop on its own machine"
    words = [f"{ratios}, a 1.100 times (1.000 to 1.200). {rates}"]
    said = "overlap: these measurements do not tell them apart."
    assert words_of(a, b) == [*words, f"The ranges of the rates {said}"]
    first, *more = words_of(a, c)
    assert first.startswith("No clear difference: c is 1.400 times (1.150 to 1.500) as fast as the plain loop")
    assert more == [f"The ranges of the ratios to the plain one {said}"]


def test_a_busy_machine_is_told(tmp_path: Path) -> None:
    for name, others in (("calm", 0.1), ("busy", 1.5), ("before", None)):
        path = a_benchmark(tmp_path / name, [40.0, 50.0, 60.0], [1.0, 1.1, 1.2])
        found = json.loads((path / "benchmark.json").read_text())
        (path / "benchmark.json").write_text(json.dumps({**found, "cores_of_others": others}))
    told = "busy: other processes used 1.500 cores meanwhile."
    assert words_of(tmp_path / "busy")[1:] == [told]
    assert words_of(tmp_path / "calm")[1:] == words_of(tmp_path / "before")[1:] == []
    assert words_of(tmp_path / "calm", tmp_path / "busy")[-1] == told


def test_what_travels_between_machines_is_on_the_page(tmp_path: Path) -> None:
    a = a_benchmark(tmp_path / "a", [40.0, 50.0, 60.0], [1.0, 1.1, 1.2])
    found = json.loads((a / "benchmark.json").read_text())
    parts = breakdown.summary({"forward": [0.25], "backward": [1.0]})
    (a / "benchmark.json").write_text(json.dumps({**found, "breakdown": parts}))
    page = document.build(read(a)).page
    assert "of a matrix product" in page and "12.5%" in page and "1.100 (1.000 to 1.200)" in page
    assert "<h3>The time of a training step</h3>" in page
    train = document.build(read(write_run(tmp_path / "run", PATIENTS))).page
    assert "of a matrix product" not in train and "The time of a training step" not in train


def test_a_sweep_is_told_by_its_combinations(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"settings": {"batch_size": size}, "result": {"item": "slices", "images_per_second": {"ours": rate}}}
        for size, rate in (("2", 40.0), ("4", 60.0))
    ]
    rows.append({"settings": {"batch_size": "9"}, "result": None, "outcome": "out of memory"})
    about = {"sweep": {"batch_size": ["2", "4", "9"]}, "rows": rows, "predict": {}}
    swept = write_benchmark(tmp_path / "swept", about)
    begins = "swept has measured 2 of 3 combinations of batch_size: batch_size=4"
    assert words_of(swept) == [f"{begins} trains most, 60.00 slices a second."]
    for row in rows[:2]:
        row["result"] = {"item": "slices", "predict": {"images_per_second": 600.0}}
    rows[1]["result"] = {"item": "slices", "predict": {"images_per_second": 700.0}}
    predicts = write_benchmark(tmp_path / "predicts", about)
    assert words_of(predicts)[0].endswith("batch_size=4 predicts most, 700.0 slices a second.")


def test_pictures_of_cases_with_like_names_have_files_of_their_own(tmp_path: Path) -> None:
    long = "patient_" * 8
    cases = ["case.1", "case_1", "case 1", "腎臓", "肝臓", f"{long}a", f"{long}b", "p1"]
    run = write_run(tmp_path / "a", dict.fromkeys(cases, 0.5), pictured=cases)
    made = [name for name in document.build(read(run)).beside if name.startswith("lgg-a-")]
    assert len(made) == len(cases)
    assert {"lgg-a-p1.png", "lgg-a-case_1.png", "lgg-a-腎臓.png"} <= set(made)
    assert file_name("a-b", "c") != file_name("a", "b-c")
    assert len(file_name(*["腎" * 99] * 3).encode()) < 200
