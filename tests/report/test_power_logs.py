"""Power logs of hl-smi and nvidia-smi: samples, idle level, energy, and the run that they belong to."""

from __future__ import annotations

from pathlib import Path

import old_logs
import pytest

from unet.report.logs import read_logs
from unet.report.logs.power_logs import summary_of
from unet.report.logs.stamps import seconds_of
from unet.report.run import Run


def alone(folder: Path, text: str, name: str = "power.txt") -> tuple[Run, list[str]]:
    (folder / name).write_text(text)
    runs, omitted = read_logs(folder)
    assert [run.kind for run in runs] == ["power log"]
    return runs[0], omitted


def test_samples_of_two_modules(tmp_path: Path) -> None:
    run, omitted = alone(tmp_path, old_logs.hl_smi())
    assert (omitted, len(run.power)) == ([], 120)
    sample = {"seconds": 0.0, "source": "module 1", "watts": 103.0}
    assert run.power[0] == sample | {"utilization": 0.15, "memory_bytes": 512 * 2**20}
    power = run.summary["power"]
    assert power["by_source"]["module 0"]["worked"] is False
    assert power["by_source"]["module 1"]["idle_watts"] == 103.0
    assert power["idle_from"] == "the median of the samples before the first rise"
    # from the first sample at 153 W to the last: 39 seconds
    assert (power["seconds"], power["joules"], power["joules_above_idle"]) == (39.0, 39 * 153.0, 39 * 50.0)
    assert power["by_source"]["module 1"]["utilization"] == pytest.approx(0.65)


def test_a_log_of_nvidia_smi(tmp_path: Path) -> None:
    run, _ = alone(tmp_path, old_logs.nvidia_smi())
    assert run.device == "NVIDIA A100-SXM4-40GB"
    assert list(run.summary["power"]["by_source"]) == ["07:00.0"]
    assert (run.summary["power"]["joules_above_idle"], run.power[1]["seconds"]) == (19 * 200.0, 1.0)


def test_a_log_without_a_heading(tmp_path: Path) -> None:
    text = old_logs.nvidia_smi().replace(old_logs.NVIDIA_HEAD, "")
    run, omitted = alone(tmp_path, text)
    assert (omitted, run.summary["power"]["joules_above_idle"]) == ([], 19 * 200.0)
    text = old_logs.hl_smi().replace(old_logs.HL_HEAD, "")
    run, _ = alone(tmp_path, text)
    assert sorted(run.summary["power"]["by_source"]) == ["card 0", "card 1"]


def test_values_that_are_not_there_and_a_cut_row(tmp_path: Path) -> None:
    lines = old_logs.nvidia_smi(4).splitlines()
    lines[3] = lines[3].replace("51.25 W", "[N/A]")
    lines.insert(5, "No devices were found")
    run, omitted = alone(tmp_path, "\n".join(lines)[:-20])
    path = tmp_path / "power.txt"
    assert len(run.power) == 2
    assert omitted == [
        f"{path}, line 9: the file ends within this row",
        f"{path}, line 6: no sample, passed over",
        f"{path}, line 4: no power in the sample (N/A)",
    ]


def test_a_log_that_begins_in_the_middle_of_the_work(tmp_path: Path) -> None:
    run, _ = alone(tmp_path, old_logs.hl_smi(60, worked=(0, 50)))
    power = run.summary["power"]
    assert power["idle_watts"] == 103.0
    assert "no sample is from before the work" in power["idle_from"]


def test_a_gap_is_not_filled() -> None:
    rows = [{"seconds": float(second), "source": "a", "watts": 50.0} for second in range(5)]
    rows += [{"seconds": float(second), "source": "a", "watts": 150.0} for second in (5, 6, 7, 1000, 1001)]
    assert summary_of(rows)["joules"] == 3 * 150.0


def test_a_power_log_belongs_to_the_run_of_its_name(tmp_path: Path) -> None:
    for folder, name, text in (
        ("txts/first", "64-max.txt", old_logs.argonne()),
        ("hl-smi-csvs/pre-procure", "64-max.txt", old_logs.hl_smi()),
        ("txts/first", "other.txt", old_logs.argonne((1.0, 1.0, 1.0))),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    runs, omitted = read_logs(tmp_path)
    assert [(run.path.stem, len(run.power)) for run in runs] == [("64-max", 120), ("other", 0)]
    assert runs[0].summary["power"]["joules_above_idle"] == 39 * 50.0
    assert omitted == []


def test_the_table_made_of_a_power_log_counts_once(tmp_path: Path) -> None:
    """`device,time-diff,...`, as the benchmark's own script writes it."""
    lines = ["device,time-diff,utilization.aip [%],power.draw [W],memory.used [MiB]"]
    for second in range(60):
        busy, watts = (65, 153) if 10 <= second < 50 else (15, 103)
        lines += [f"1,{second},{busy},{watts},512", f"0,{second},14,100,512"]
    (tmp_path / "clean.csv").write_text("\n".join(lines) + "\n")
    runs, _ = read_logs(tmp_path)
    assert runs[0].summary["power"]["joules_above_idle"] == 39 * 50.0
    (tmp_path / "raw.txt").write_text(old_logs.hl_smi())
    runs, omitted = read_logs(tmp_path)
    assert [run.name for run in runs] == ["raw"]
    assert "clean.csv: the same values as" in omitted[0]


def test_a_power_log_belongs_to_the_run_of_its_time(tmp_path: Path) -> None:
    (tmp_path / "training_log_a.txt").write_text(
        old_logs.NNUNET_HEAD + old_logs.nnunet_epoch(0, "[0.5]", 0) + old_logs.nnunet_epoch(1, "[0.5]", 1)
    )
    (tmp_path / "card.csv").write_text(old_logs.nvidia_smi().replace("2022/08/02 20:16", "2025/06/23 17:00"))
    runs, _ = read_logs(tmp_path)
    assert [run.kind for run in runs] == ["nnU-Net log"]
    assert len(runs[0].power) == 30
    assert runs[0].power[0]["seconds"] == pytest.approx(39 * 60 + 11, abs=1)  # since the log's first line, 16:20:49


def test_a_power_log_that_could_belong_to_two_runs_stays_alone(tmp_path: Path) -> None:
    (tmp_path / "64-max.txt").write_text(old_logs.argonne() + old_logs.argonne((1.0, 2.0, 3.0)))
    (tmp_path / "64-max-power.csv").write_text(old_logs.hl_smi())
    runs, omitted = read_logs(tmp_path)
    assert [run.kind for run in runs] == ["Argonne log", "Argonne log", "power log"]
    assert "belongs to one of 64-max #1, 64-max #2" in omitted[0]


@pytest.mark.parametrize(
    ("text", "clock"),
    [
        ("Tue Aug  2 20:16:52 UTC 202", "UTC"),  # the year as hl-smi cuts it
        ("Tue Aug  2 20:16:52 UTC 2022", "UTC"),
        ("Tue Aug  2 20:16:52 2022", "local"),
        ("Tue 02 Aug 2022 08:16:52 PM UTC", "UTC"),
        ("2022/08/02 20:16:52.000", "local"),
        ("2022-08-02 20:16:52", "local"),
    ],
)
def test_stamps(text: str, clock: str) -> None:
    assert seconds_of(text) == (1659471412.0, clock)


@pytest.mark.parametrize("text", ["", "103 W", "Tue Aug 42 20:16:52 UTC 2022", "Xyz Aug  2 20:16:52 UTC 202"])
def test_what_is_no_stamp(text: str) -> None:
    assert seconds_of(text) is None
