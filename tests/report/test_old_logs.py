"""Logs of the Argonne benchmark, MLPerf and nnU-Net become runs; what cannot be read is named with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import old_logs
import pytest

from unet.errors import UsageError
from unet.report.logs import analysis, argonne, mlperf, nnunet, read_logs
from unet.report.logs.lines import Line
from unet.report.run import Run


def one(folder: Path, text: str | bytes, name: str = "64-max.txt") -> tuple[Run, list[str]]:
    """The only run of a log."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    runs, omitted = read_logs(folder)
    assert len(runs) == 1, runs
    return runs[0], omitted


@pytest.mark.parametrize("text", [old_logs.argonne(), old_logs.best_after_the_end()], ids=["before", "after the end"])
def test_a_log_of_one_process(tmp_path: Path, text: str) -> None:
    run, omitted = one(tmp_path, text)
    assert (run.kind, run.status, run.name, omitted, run.omitted) == ("Argonne log", "done", "64-max", [], [])
    assert [row["epoch"] for row in run.epochs] == [1, 2, 3]
    values = {"epoch": 2, "loss": 0.98, "eval_loss": 0.99, "score": 0.25, "train_seconds": 10.25}
    assert run.epochs[1] == values | {
        "event": "epoch",
        "evaluate_seconds": 1.025,
        "time_to_train": pytest.approx(55.825),
    }
    assert run.score == 0.25
    assert run.summary["seconds"] == {"train": 62.5, "evaluate": 6.25, "loaders": 7.5}
    assert run.settings["image_size"] == 64
    assert run.settings["batch_size"] == 64  # not typed
    assert run.sources["batch_size"] == "default of the benchmark's program"
    assert run.sources["epochs"] == "flag --epochs"
    assert run.device == run.settings["device"] == "hpu"


@pytest.mark.parametrize("ends", ["\r\n", "\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_ends_of_lines_and_encodings(tmp_path: Path, ends: str, encoding: str) -> None:
    run, omitted = one(tmp_path, old_logs.argonne().replace("\n", ends).encode(encoding))
    assert (len(run.epochs), run.score, run.status, omitted) == (3, 0.25, "done", [])


def test_our_own_log_is_the_same_format(tmp_path: Path) -> None:
    text = old_logs.argonne().replace(old_logs.LOCAL, "python -m unet train --task em --batch_size 4 --run-name 'a b'")
    run, _ = one(tmp_path, text)
    assert (run.task, run.settings["batch_size"], run.settings["run_name"]) == ("em", 4, "a b")
    assert "lr" not in run.settings  # not typed, and not the benchmark's program


def test_processes_that_write_into_one_file(tmp_path: Path) -> None:
    run, omitted = one(tmp_path, old_logs.TWO_CARDS, "64-two.txt")
    assert omitted == []
    assert (run.status, run.summary["ranks"], run.score) == ("done", 2, None)
    assert [row["train_seconds"] for row in run.epochs] == [31.5, 11.5]  # the slowest's
    assert [row["loss"] for row in run.epochs] == [pytest.approx(0.97), pytest.approx(0.87)]
    assert run.epochs[1]["train_seconds_by_card"] == {"0": 11.5, "1": 10.5}
    assert run.epochs[1]["evaluate_seconds"] == 3.75  # of the row after the end
    assert run.omitted == [f"{tmp_path / '64-two.txt'}: 2 of 2 evaluations have no score (nan)"]


def test_a_second_start_of_two_processes_is_another_run(tmp_path: Path) -> None:
    killed = old_logs.TWO_CARDS[: old_logs.TWO_CARDS.index("train,0,2")]
    (tmp_path / "64-two.txt").write_text(killed + old_logs.TWO_CARDS)
    runs, _ = read_logs(tmp_path)
    assert [(run.name, run.status, len(run.epochs)) for run in runs] == [
        ("64-two #1", "interrupted", 1),
        ("64-two #2", "done", 2),
    ]


def test_several_blocks_and_a_start_without_an_epoch(tmp_path: Path) -> None:
    text = old_logs.argonne()
    (tmp_path / "a.txt").write_text(text[: text.index("train,1")] + text + text.replace("0.25", "0.5"))
    runs, omitted = read_logs(tmp_path)
    assert [(run.name, run.score) for run in runs] == [("a #1", 0.25), ("a #2", 0.5)]
    assert omitted == [f"{tmp_path / 'a.txt'}, line 2: a start that ended before its first epoch"]


def test_a_killed_run_and_a_cut_line(tmp_path: Path) -> None:
    text = old_logs.argonne()
    run, omitted = one(tmp_path, text[: text.index("0.1875") + 3])  # `eval,3,...,0.985, 0.1` would be a whole row
    assert run.status == "interrupted"
    assert "no End CSV" in run.why
    assert [row.get("score") for row in run.epochs] == [0.125, 0.25, None]
    assert run.summary["seconds"]["train"] == 62.5  # the sum, since no total was written
    assert omitted == [f"{tmp_path / '64-max.txt'}, line 10: the file ends within this row"]


def test_lines_of_other_programs_and_damaged_rows(tmp_path: Path) -> None:
    text = old_logs.argonne().replace("train,2,", "WARNING: no hccl\ntrain,2,").replace("eval,1,4.05", "eval,1,4.0x5")
    run, omitted = one(tmp_path, text.replace("\ntrain,3,11.75,0.97,", "\ntrain,3,11.75,0.9train,3,11.75,0.9,"))
    path = tmp_path / "64-max.txt"
    assert [row.get("score") for row in run.epochs] == [None, 0.25, 0.1875]
    assert omitted == [
        f"{path}, line 6: no row of a log (could not convert string to float: '4.0x5')",
        f"{path}, line 10: no row of a log (8 cells instead of 5, or 6 with a card)",
        f"{path}, line 7: not of this log, passed over",
    ]


@pytest.mark.parametrize(
    ("text", "card", "epoch", "seconds", "loss", "score"),
    [
        ("train,2,10.5,0.5,", "", 2, 10.5, 0.5, None),
        ("train,2,10.5,0.5", "", 2, 10.5, 0.5, None),
        ("train,1,2,10.5,0.5,", "1", 2, 10.5, 0.5, None),
        ("train,1,2,10.5,0.5", "1", 2, 10.5, 0.5, None),
        ("eval,2,10.5,0.5, 0.25", "", 2, 10.5, 0.5, 0.25),
        ("eval,2,10.5,, 0.25", "", 2, 10.5, None, 0.25),
        ("eval,1,2,10.5,0.5, 0.25", "1", 2, 10.5, 0.5, 0.25),
        ("loaders_init,,10.5,,", "", None, 10.5, None, None),
        ("loaders_init,,,10.5,,", "", None, 10.5, None, None),
        ("total_train_time,2,10.5,,", "", None, 10.5, None, None),
        ("total_eval_time,,2,10.5,,", "", None, 10.5, None, None),
    ],
)
def test_rows_with_and_without_a_card(
    text: str, card: str, epoch: int | None, seconds: float, loss: float | None, score: float | None
) -> None:
    row = argonne.row_of(Line(1, text, whole=True))
    assert row == argonne.Row(text.partition(",")[0], card, epoch, seconds, loss, score)


@pytest.mark.parametrize(
    "text",
    ["train,2,,0.5,", "train", "eval,1", "eval,x,1,1,1", "train,1.5,1,1,", "loaders_init,,,,", "eval,1,2,3,4,5,6"],
)
def test_rows_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="row"):
        argonne.row_of(Line(1, text, whole=True))


def test_a_best_score_of_nothing(tmp_path: Path) -> None:
    """Where all scores are nan, the program writes the zero that it began with."""
    run, _ = one(tmp_path, old_logs.argonne(dsc=("nan", "nan", "nan")))
    assert run.score is None
    assert run.omitted == [f"{tmp_path / '64-max.txt'}: 3 of 3 evaluations have no score (nan)"]


def test_the_table_that_was_cut_out_of_a_log_counts_once(tmp_path: Path) -> None:
    text = old_logs.argonne()
    (tmp_path / "txts" / "first").mkdir(parents=True)
    (tmp_path / "csvs" / "first").mkdir(parents=True)
    (tmp_path / "txts" / "first" / "64-max.txt").write_text(text)
    table = tmp_path / "csvs" / "first" / "64-max.csv"
    table.write_text(text[text.index("type,") : text.index("End CSV")])
    runs, omitted = read_logs(tmp_path)
    assert [run.path.suffix for run in runs] == [".txt"]
    assert omitted == [f"{table}: the same values as {tmp_path / 'txts' / 'first' / '64-max.txt'}, left out"]
    runs, _ = read_logs(table.parent)
    assert [(run.score, run.status, len(run.epochs)) for run in runs] == [(0.25, "interrupted", 3)]


def test_the_figures_of_the_benchmark_s_own_analysis(tmp_path: Path) -> None:
    (tmp_path / "128-batch-1.txt").write_text(old_logs.argonne())
    (tmp_path / "128-batch-2.txt").write_text(old_logs.argonne((60.5, 20.25, 30.75), ("0.5", "0.75", "0.5")))
    runs, _ = read_logs(tmp_path)
    first, second, mean = (figures for _, figures in analysis.rows(runs))
    assert first["first_epoch"] == 40.5
    assert (first["mean_epoch"], first["longest_epoch"], first["shortest_epoch"]) == (11.0, 11.75, 10.25)
    assert first["mean_evaluation"] == pytest.approx(1.1)
    assert (first["best_score"], first["train_seconds"], first["loader_seconds"]) == (0.25, 62.5, 7.5)
    assert mean["mean_epoch"] == (first["mean_epoch"] + second["mean_epoch"]) / 2 == 18.25
    text = analysis.text(runs)
    assert "128-batch: mean of 2" in text
    assert "first s" in text


@pytest.mark.parametrize("samples", [False, True], ids=["counted in epochs", "counted in samples"])
def test_a_log_of_mlperf(tmp_path: Path, samples: bool) -> None:
    run, omitted = one(tmp_path, "Loading data\n" + old_logs.mlperf(samples), "result_0.txt")
    assert omitted == [f"{tmp_path / 'result_0.txt'}, line 1: not of MLPerf, passed over"]
    assert (run.kind, run.status, run.why, run.score) == ("MLPerf log", "done", "run_stop says success", 0.9125)
    assert [(row["epoch"], row["samples"], row["score"]) for row in run.epochs] == [
        (20, 3360, 0.85),
        (40, 6720, 0.9125),
    ]
    assert [row["train_seconds"] for row in run.epochs] == [16.0, 16.0]
    assert [row["evaluate_seconds"] for row in run.epochs] == [2.0, 2.0]
    assert run.seconds_to_target == 38.0
    assert run.summary["seconds"]["run"] == 39.0
    assert run.rate == 6720 / 32
    assert (run.settings["lr"], run.settings["global_batch_size"], run.settings["seed"]) == (2.0, 56, 7)


def test_ranks_in_a_log_of_mlperf(tmp_path: Path) -> None:
    """Prefixes before the mark, and the same events from two processes."""
    lines = old_logs.mlperf(samples=True).splitlines()
    text = "".join(f"0: {line}\n1: {line}\n" for line in lines)
    run, omitted = one(tmp_path, text, "unet3d.log")
    assert ([row["epoch"] for row in run.epochs], omitted) == ([20, 40], [])
    assert run.rate == 6720 / 32


def test_a_log_of_mlperf_that_was_cut(tmp_path: Path) -> None:
    text = old_logs.mlperf(samples=True, stop=None)
    run, omitted = one(tmp_path, text[:-30], "unet3d.log")
    assert (run.status, len(run.epochs)) == ("interrupted", 2)
    assert omitted == [
        f"{tmp_path / 'unet3d.log'}, line {text.count(chr(10))}: no whole event (the file ends within it)"
    ]


def test_two_runs_in_one_log_of_mlperf(tmp_path: Path) -> None:
    (tmp_path / "unet3d.log").write_text(
        old_logs.mlperf(True) + old_logs.mlperf(False, "aborted").replace(" 42,", " 43,").replace("1600", "1700")
    )
    runs, _ = mlperf.read(tmp_path / "unet3d.log")
    assert [run.why for run in runs] == ["run_stop says success", "run_stop says aborted"]
    assert [len(run.epochs) for run in runs] == [2, 2]


def test_a_log_of_nnunet(tmp_path: Path) -> None:
    text = old_logs.NNUNET_HEAD + old_logs.nnunet_epoch(0, "[np.float32(0.5), np.float32(nan)]", 0)
    text += old_logs.nnunet_epoch(1, "[0.75, 0.25]", 1, new=False)
    text += "2025-06-23 18:00:00.123456: Training done. \n"
    text += (
        "2025-06-23 18:10:00.123456: Validation complete \n2025-06-23 18:10:00.123456: Mean Validation Dice:  0.8125 \n"
    )
    run, omitted = one(tmp_path, text, "training_log_2025_6_23_16_20_49.txt")
    assert (run.kind, run.status, run.score, omitted) == ("nnU-Net log", "done", 0.8125, [])
    assert run.task == run.settings["dataset"] == "Dataset200_Tiny"
    assert (run.settings["batch_size"], run.settings["patch"], run.settings["fold"]) == (12, [512, 512], "0")
    assert (run.settings["train_cases"], run.settings["validation_cases"]) == (2790, 698)
    first, second = run.epochs
    assert (first["epoch"], first["loss"], first["eval_loss"], first["lr"]) == (1, -0.05, -0.03, 0.099)
    assert (first["score"], first["score_by_label"], first["train_seconds"]) == (0.5, [0.5, None], 60.5)
    assert first["ema_score"] == 0.1052700006961
    assert (second["score"], second["time_to_train"]) == (0.5, 122.0)


def test_the_starts_of_an_nnunet_run_go_on_from_one_another(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset200_Tiny" / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    folder.mkdir(parents=True)
    one_, two = folder / "training_log_2025_1_1_00_00_00.txt", folder / "training_log_2025_1_2_00_00_00.txt"
    one_.write_text(
        old_logs.NNUNET_HEAD + "".join(old_logs.nnunet_epoch(n, "[0.5]", n) for n in range(3)) + "2025-06-2"
    )
    two.write_text(old_logs.NNUNET_HEAD + "".join(old_logs.nnunet_epoch(n, "[0.75]", n) for n in range(2, 4)))
    runs, omitted = read_logs(tmp_path)
    assert [(run.name, run.status) for run in runs] == [
        ("Dataset200_Tiny/nnUNetTrainer__nnUNetPlans__2d/fold_0", "interrupted")
    ]
    assert [row["score"] for row in runs[0].epochs] == [0.5, 0.5, 0.75, 0.75]
    assert runs[0].settings["starts"] == 2
    assert omitted == [f"{one_}, line {one_.read_text().count(chr(10)) + 1}: the file ends within this line"]


def test_a_log_of_nnunet_1(tmp_path: Path) -> None:
    run, _ = nnunet.read([_written(tmp_path / "training_log_2021.txt", old_logs.NNUNET_1)])
    assert [(row["loss"], row["eval_loss"], row["score"], row["lr"]) for row in run[0].epochs] == [
        (-0.7531, -0.5259, 0.625, 0.007941)
    ]
    assert run[0].epochs[0]["train_seconds"] == 288.041806


def test_files_that_are_no_logs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(old_logs.argonne())
    (tmp_path / "notes.txt").write_text("to do\n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    (tmp_path / "table.txt").write_bytes(b"\0\0binary")
    runs, omitted = read_logs(tmp_path)
    assert len(runs) == 1
    assert omitted == [f"{tmp_path}: notes.txt, numbers.csv, table.txt: of no known format"]


def test_a_folder_without_a_log(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "no text file"), (tmp_path / "gone", "does not exist")):
        with pytest.raises(UsageError, match=words):
            read_logs(path)
    (tmp_path / "a.txt").write_text("nothing\n")
    with pytest.raises(UsageError, match=r"a\.txt: of no known format"):
        read_logs(tmp_path)


def test_an_argonne_log_of_a_type_alone_is_not_a_log_of_nnunet(tmp_path: Path) -> None:
    assert argonne.looks_like("x\ntype,card,epoch,time,loss,dsc\n")
    assert not nnunet.looks_like(old_logs.argonne())
    assert not argonne.looks_like(old_logs.NNUNET_HEAD)


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_reading_changes_nothing(tmp_path: Path) -> None:
    for name, text in {"a.txt": old_logs.argonne(), "b.log": old_logs.mlperf(True), "c.txt": old_logs.hl_smi()}.items():
        (tmp_path / name).write_text(text)
    before = _state(tmp_path)
    read_logs(tmp_path)
    assert _state(tmp_path) == before


def _state(folder: Path) -> dict[str, Any]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}
