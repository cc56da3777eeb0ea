"""Power: the outputs of the vendors' tools as they print them, the kernel's counters, and where a user sees watts."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import TINY

from unet.devices.power import counters, sources, tools

# (device, program, output, card, watts); sources: the parsers' docstrings
OUTPUTS = [
    ("cuda", "nvidia-smi", "0, GPU-6d8c1f3a, 71.33\n1, GPU-0b2e, 402.10\n", "1", 402.10),
    ("cuda", "nvidia-smi", "0, GPU-6d8c1f3a, 71.33\n1, GPU-0b2e, 402.10\n", "GPU-6d8c1f3a", 71.33),
    ("cuda", "nvidia-smi", "0, GPU-6d8c1f3a, 71.33\n1, GPU-0b2e, 402.10\n", "GPU-0b", 402.10),  # a beginning of it
    ("cuda", "nvidia-smi", "0, GPU-6d8c1f3a, 71.33\n1, GPU-6d2e, 402.10\n", "GPU-6d", None),
    ("cuda", "nvidia-smi", "0, GPU-6d8c1f3a, 71.33\n", "3", 71.33),  # a container sees one card, under any number
    ("cuda", "nvidia-smi", "0, GPU-6d8c1f3a, [N/A]\n", "0", None),
    ("cuda", "nvidia-smi", "0, GPU-6d8c1f3a, 71.33\n1, GPU-0b2e, 402.10\n", "7", None),
    ("hpu", "hl-smi", "0, 92 W\n1, 103 W\n", "1", 103.0),
    ("hpu", "hl-smi", "3, 103 W\n", "", 103.0),
    ("hpu", "hl-smi", "0, 92 W\n1, 103 W\n", "", None),  # which of them is not known
    (
        "mlu",
        "cnmon",
        "Sat Oct  8 11:22:22 2022\n"
        "+------------------------------------------------------------------------------+\n"
        "| CNMON v5.10.13                                               Driver v5.10.13 |\n"
        "+-------------------------------+----------------------+-----------------------+\n"
        "| Card  VF  Name       Firmware |               Bus-Id | Util        Ecc-Error |\n"
        "| Fan   Temp      Pwr:Usage/Cap |         Memory-Usage | SR-IOV   Compute-Mode |\n"
        "|===============================+======================+=======================|\n"
        "| 0     /   MLU370-X8    v1.1.6 |         0000:39:00.0 | 0%                N/A |\n"
        "|  0%   32C        106 W/ 250 W |     0 MiB/ 23374 MiB | N/A           Default |\n"
        "+-------------------------------+----------------------+-----------------------+\n"
        "| 1     /   MLU370-X8    v1.1.6 |         0000:3D:00.0 | 0%                N/A |\n"
        "|  0%   39C        108 W/ 250 W |     0 MiB/ 23374 MiB | N/A           Default |\n"
        "+-------------------------------+----------------------+-----------------------+\n",
        "1",
        108.0,
    ),
    (
        "rocm",
        "rocm-smi",
        '{"card0": {"Average Graphics Package Power (W)": "42.0", "Max Graphics Package Power (W)": "300.0"},'
        ' "card1": {"Current Socket Graphics Package Power (W)": "139.0"}, "system": {"Driver version": "6.7.0"}}\n',
        "1",
        139.0,
    ),
    (
        "xpu",
        "xpu-smi",
        "Timestamp, DeviceId, GPU Power (W)\n06:14:46.000,    0, 14.61\n06:14:46.000,    1, N/A\n",
        "0",
        14.61,
    ),
    ("npu", "npu-smi", "\tNPU Real-time Power(W)         : 71.2\n\tChip ID                        : 0\n", "5", 71.2),
    ("npu", "npu-smi", "\tPower Dissipation(W)           : 12.8\n", "0", 12.8),
    ("npu", "npu-smi", "Error parameter of -t\n", "0", None),
    ("rocm", "rocm-smi", "WARNING: no AMD GPUs\n", "0", None),
    ("rocm", "rocm-smi", "[]\n", "0", None),
]


def install(folder: Path, name: str, output: str, code: int = 0, asked: Path = Path(os.devnull)) -> None:
    """A program that prints this and writes down what it was asked."""
    path = folder / name
    path.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(asked)!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        f"sys.stdout.write({output!r})\nsys.exit({code})\n"
    )
    path.chmod(0o755)


@pytest.mark.parametrize(("device", "program", "output", "card", "watts"), OUTPUTS)
def test_a_tool_s_output_is_read(
    device: str,
    program: str,
    output: str,
    card: str,
    watts: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    install(tmp_path, program, output, asked=tmp_path / "asked")
    assert sources.read(device, card, 0) == watts
    asked = (tmp_path / "asked").read_text().split()
    assert asked == [word.format(card=card) for word in tools.TOOLS[device].command[1:]]
    install(tmp_path, program, output, code=9)
    assert sources.read(device, card, 0) is None  # the driver does not answer


def test_nothing_to_ask_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(counters, "POWERCAP", tmp_path)
    assert [sources.read(name, "0", 0) for name in (*tools.TOOLS, "mps", "cpu", "my own")] == [None] * 9
    (tmp_path / "hl-smi").write_text("no program\n")
    assert sources.read("hpu", "0", 0) is None
    monkeypatch.setattr(tools, "PATIENCE", 0.2)
    install(tmp_path, "hl-smi", "0, 92 W\n")
    text = (tmp_path / "hl-smi").read_text().replace("import sys\n", "import sys, time; time.sleep(5)\n", 1)
    (tmp_path / "hl-smi").write_text(text)
    started = time.monotonic()
    assert sources.read("hpu", "0", 0) is None
    assert time.monotonic() - started < 4


def zones(folder: Path, *joules: int, most: int = 1000) -> None:
    """Counters of two processors as the kernel shows them, and beside them other counters of the same joules."""
    rows = [(f"intel-rapl:{number}", f"package-{number}", value) for number, value in enumerate(joules)]
    again = [("intel-rapl:0:0", "dram", sum(joules)), ("intel-rapl:9", "psys", sum(joules))]
    again += [("intel-rapl-mmio:0", "package-0", sum(joules))]
    for name, title, value in (*rows, *again):
        (folder / name).mkdir(exist_ok=True)
        for file, text in (("name", title), ("energy_uj", value * 10**6), ("max_energy_range_uj", most * 10**6)):
            (folder / name / file).write_text(f"{text}\n")


def test_the_processors_power_is_the_change_of_their_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "POWERCAP", tmp_path)
    zones(tmp_path, 40, 995)  # the second one passes its end
    threading.Timer(0.1, zones, (tmp_path, 50, 15)).start()
    started = time.perf_counter()
    watts = sources.read("cpu", interval=0.5)
    longest = time.perf_counter() - started
    assert watts is not None
    assert 30 / longest * 0.99 <= watts <= 30 / 0.5  # 10 J and 20 J
    if os.getuid():
        (tmp_path / "intel-rapl:1" / "energy_uj").chmod(0)
    else:
        (tmp_path / "intel-rapl:1" / "energy_uj").write_text("forbidden")
    assert sources.read("cpu", interval=0) is None


@pytest.mark.slow
def test_doctor_and_benchmark_show_watts(cli, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = cli("doctor", "--device", "cpu")
    assert code == 0, err
    folder = tmp_path / "powercap"
    folder.mkdir()
    monkeypatch.setattr(counters, "POWERCAP", folder)
    over, used = threading.Event(), [0]

    def burn() -> None:
        """100 W."""
        while not over.wait(0.01):
            used[0] += 1
            target = folder / "intel-rapl:0"
            target.mkdir(exist_ok=True)
            for file, text in (
                ("name", "package-0"),
                ("max_energy_range_uj", "262143328850"),
                ("energy_uj", str(int(time.perf_counter() * 100e6) % 262143328850)),
            ):
                draft = target / f".{file}"
                draft.write_text(text)
                draft.replace(target / file)

    thread = threading.Thread(target=burn)
    thread.start()
    try:
        while used[0] < 3:
            time.sleep(0.01)
        code, out, err = cli("doctor", "--device", "cpu")
        assert code == 0, err
        watts = float(out.split("  power ")[1].split(" W at present")[0])
        assert 50 < watts < 200  # the counter is as old as a busy machine makes it: tens of milliseconds of 200
        code, out, err = cli(
            *("benchmark", "--data", phantoms, "--cache", "c", "--device", "cpu", *TINY),
            *("--rounds", 1, "--steps", 2, "--run-name", "b"),
        )
        assert code == 0, err
    finally:
        over.set()
        thread.join()
    assert "slices per joule" in out
    assert 50 < float(out.split("  power ")[1].split(" W on average")[0]) < 200
