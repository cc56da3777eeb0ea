"""Power in the background: what is read, how it adds up to joules, and that nothing that fails stops or slows it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unet.devices.power import counters, sources, tools
from unet.devices.power.sampler import Channel, Sampler
from unet.devices.power.sources import Counters, Nvml, Program, Reading
from unet.devices.power.tools import TOOLS, Tool, Unreadable
from unet.errors import StorageError


class Script:
    """A source that gives what it is told to, one after another; the last again and again."""

    name = "script"

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), 0

    def read(self, over: threading.Event) -> list[Reading]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [Reading("card", answer)] if isinstance(answer, float) else answer


def wait(until: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for programs, which is the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_watts_between_two_readings_are_a_trapezoid_and_a_long_gap_is_none() -> None:
    channel = Channel()
    for at, watts in ((0.0, 100.0), (2.0, 200.0), (3.0, 0.0), (103.0, 100.0), (104.0, 100.0)):
        channel.add(at, Reading("card", watts), longest=10.0)
    assert channel.joules == 300 + 100 + 100
    assert (channel.seconds, channel.gap) == (4.0, 100.0)
    assert channel.until(104.5, 10.0) == (550.0, 4.5)
    assert channel.until(1000.0, 10.0) == (1500.0, 14.0)  # a source that tells nothing more is not counted on


def test_the_mean_of_a_counter_has_no_gap() -> None:
    channel = Channel()
    channel.add(0.0, Reading("package-0", 10.0, 1.0), longest=5.0)
    channel.add(100.0, Reading("package-0", 20.0, 100.0), longest=5.0)
    assert (channel.joules, channel.seconds, channel.gap) == (2010.0, 101.0, 0.0)


def test_joules_above_the_idle_level() -> None:
    source = Script(*([50.0] * 1000))
    sampler = Sampler([source], 0.05)
    sampler.start()
    sampler.rest()  # a second
    source.answers = [150.0]
    wait(lambda: sampler.channels["card"].watts == 150.0)
    first, began = sampler.energy(), time.monotonic()
    time.sleep(0.5)
    last, passed = sampler.energy(), time.monotonic() - began
    sampler.stop()
    assert sampler.channels["card"].idle == 50.0
    used = last["joules"] - first["joules"]
    assert used == pytest.approx(150 * passed, rel=0.05)
    assert last["above_idle"] - first["above_idle"] == pytest.approx(100 * passed, rel=0.05)
    assert last["without_idle"] == 0
    assert sampler.energy() == sampler.energy()  # nothing is added after the end


def test_a_reading_costs_the_run_nothing_and_the_thread_ends_within_a_second(folder: Path) -> None:
    """A tool that needs a minute: the run's own calls return at once."""
    program(folder, "slow-smi", "time.sleep(60)")
    sampler = Sampler([Program("own", Tool(("slow-smi",), lambda text: {}), ["0"])], 0.05)
    sampler.start()
    time.sleep(0.3)
    began = time.monotonic()
    for _ in range(100):
        sampler.energy()
        sampler.remarks()
    assert time.monotonic() - began < 0.2
    began = time.monotonic()
    sampler.stop()
    assert time.monotonic() - began < 1.0
    assert not sampler._thread.is_alive()
    assert sampler.failed == {}  # it was only not waited for


def test_one_query_at_a_time_and_a_slow_tool_is_told_once(folder: Path) -> None:
    program(
        folder,
        "npu-smi",
        f"place = {str(folder)!r} + '/busy'\n"
        "fd = os.open(place, os.O_CREAT | os.O_EXCL)\n"  # fails if another one runs
        "time.sleep(0.15)\nprint('NPU Real-time Power(W) : 71.2')\nos.close(fd)\nos.remove(place)",
    )
    sampler = Sampler([Program("npu", TOOLS["npu"], ["3"])], 0.05)
    sampler.start()
    wait(lambda: "npu 3" in sampler.channels and sampler.channels["npu 3"].readings >= 3)
    sampler.stop()
    assert sampler.failed == {}
    told = sampler.remarks()
    assert len(told) == 1
    assert "npu-smi takes 0." in told[0]
    assert "not every 0.05 s" in told[0]
    assert sampler.remarks() == []


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("print('Watts: many')", "printed no watts that are understood: 'Watts: many'"),
        ("", "printed no watts that are understood: ''"),
        ("print('no devices were found'); sys.exit(9)", "ended with exit code 9: no devices were found"),
        ("sys.stderr.write('Insufficient Permissions\\n'); sys.exit(4)", "exit code 4: Insufficient Permissions"),
        ("os.kill(os.getpid(), 11)", "ended with exit code -11"),
        ("sys.stdout.write('x' * 3000000); time.sleep(9)", "printed more than 1 MiB"),
        ("os.close(1); os.close(2); time.sleep(60)", "gave no answer within 0.5 s"),
        ("time.sleep(60)", "gave no answer within 0.5 s"),
        ("print('2, GPU-aa, 71.0')", "names no card GPU-bb"),
    ],
)
def test_what_a_tool_may_do(body: str, why: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "PATIENCE", 0.5)
    program(folder, "nvidia-smi", body)
    sampler = Sampler([Program("cuda", TOOLS["cuda"], ["GPU-bb", "GPU-cc"])], 0.05)
    sampler.start()
    wait(lambda: sampler.failed)
    time.sleep(0.3)  # it is asked again
    sampler.stop()
    assert why in sampler.failed["nvidia-smi"]
    told = sampler.remarks()
    assert len(told) == 1
    assert told[0].startswith("power: nvidia-smi cannot be read: ")
    assert told[0].endswith("; the run goes on")
    assert sampler.energy()["readings"] == 0


def test_a_tool_that_is_missing_is_not_asked_again_and_one_that_fails_is(folder: Path) -> None:
    lost, back = Script(Unreadable("gone", final=True)), Script(Unreadable("busy"), RuntimeError("driver"), 30.0)
    back.name = "back"
    sampler = Sampler([lost, back], 0.05)
    sampler.start()
    wait(lambda: sampler.energy()["readings"] >= 2)
    sampler.stop()
    assert lost.asked == 1
    assert sampler.failed == {"script": "gone", "back": "busy"}
    assert len(sampler.remarks()) == 2


def test_a_tool_appears_and_dies_while_the_run_goes_on(folder: Path) -> None:
    program(folder, "hl-smi", "print('0, 92 W\\n1, 103 W')")
    sampler = Sampler([Program("hpu", TOOLS["hpu"], ["0", "1"])], 0.05)
    sampler.start()
    wait(lambda: sampler.energy()["readings"] >= 4)
    (folder / "hl-smi").unlink()
    wait(lambda: sampler.failed)
    joules = sampler.energy()["joules"]
    assert joules > 0
    sampler.stop()
    (said,) = sampler.failed.values()
    assert said == "hl-smi is not on the PATH" or "exit code" in said  # it had just been started
    assert set(sampler.channels) == {"hpu 0", "hpu 1"}
    assert {item.watts for item in sampler.channels.values()} == {92.0, 103.0}


def test_a_process_that_was_forked_meanwhile_does_not_hold_up_a_reading(folder: Path) -> None:
    """Workers of a loader are forked, and inherit the pipes of a program that is just being asked."""
    program(folder, "hl-smi", "pid = os.fork()\nif pid == 0:\n    time.sleep(5)\n    os._exit(0)\nprint('0, 92 W')")
    began = time.monotonic()
    assert tools.ask(TOOLS["hpu"], "0") == {"0": 92.0}
    assert time.monotonic() - began < 3


def zone(folder: Path, name: str, title: str, microjoules: int) -> None:
    (folder / name).mkdir(exist_ok=True)
    for file, text in (("name", title), ("energy_uj", microjoules), ("max_energy_range_uj", 10**9)):
        (folder / name / file).write_text(f"{text}\n")


def test_processors_and_memory_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "POWERCAP", tmp_path)
    names = [("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram")]
    names += [("intel-rapl:1", "package-1"), ("intel-rapl:1:0", "dram"), ("intel-rapl:2", "psys")]
    names += [("intel-rapl-mmio:0", "package-0")]
    for number, (name, title) in enumerate(names):
        zone(tmp_path, name, title, number * 10**6)
    source, over = Counters(), threading.Event()
    assert source.read(over) == []  # the first only begins
    for number, (name, title) in enumerate(names):
        zone(tmp_path, name, title, (number * 10**6 + (number + 1) * 10**6) % 10**9)
    found = {reading.channel: reading.watts * reading.seconds for reading in source.read(over)}
    assert found == pytest.approx({"package-0": 1.0, "dram-0": 3.0, "package-1": 4.0, "dram-1": 5.0})
    zone(tmp_path, "intel-rapl:0", "package-0", 0)  # it has passed its end
    assert {reading.channel: reading.watts * reading.seconds for reading in source.read(over)}[
        "package-0"
    ] == pytest.approx(999.0)


def test_counters_that_are_forbidden_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "POWERCAP", tmp_path)
    with pytest.raises(Unreadable, match="no energy counters in") as caught:
        Counters().read(threading.Event())
    assert caught.value.final
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    forbid = tmp_path / "intel-rapl:0" / "energy_uj"
    read = Path.read_text

    def as_user(path: Path, *words: Any, **how: Any) -> str:
        """As root the kernel forbids nothing."""
        if path == forbid:
            raise PermissionError(13, "Permission denied")
        return read(path, *words, **how)

    monkeypatch.setattr(Path, "read_text", as_user)
    with pytest.raises(Unreadable, match=r"only root may read .*chmod a\+r") as caught:
        Counters().read(threading.Event())
    assert caught.value.final


class Nvidia(SimpleNamespace):
    """What pynvml has, for two cards: the first counts millijoules, the second only tells its milliwatts."""

    class NVMLError(Exception): ...

    class NVMLError_NotSupported(NVMLError): ...

    def __init__(self) -> None:
        super().__init__(used=5000, lost=False)

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, card: str) -> str:
        return card

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        if self.lost:
            raise self.NVMLError("GPU is lost")
        if handle == 1:
            raise self.NVMLError_NotSupported("Not Supported")
        return self.used

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return 71330


def test_nvidia_s_library_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    library, over = Nvidia(), threading.Event()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    source = sources.of("cuda", ["GPU-6d8c", "1"], None)[0]
    assert isinstance(source, Nvml)
    assert source.read(over) == [Reading("cuda 1", 71.33)]
    library.used += 20000
    first, second = source.read(over)
    assert first.watts * first.seconds == pytest.approx(20.0)
    assert (first.channel, second) == ("cuda GPU-6d8c", Reading("cuda 1", 71.33))
    library.lost = True
    with pytest.raises(Unreadable, match="NVML: GPU is lost"):
        source.read(over)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    source = sources.of("cuda", ["GPU-6d8c"], None)[0]
    assert isinstance(source, Program)
    assert source.name == "nvidia-smi"


def test_which_sources_a_device_has() -> None:
    assert [source.name for source in sources.of("cpu", [""], None)] == ["RAPL"]
    assert [source.name for source in sources.of("rocm", ["0"], None)] == ["rocm-smi", "RAPL"]
    own, counted = sources.of("mine", ["0"], lambda interval: 12.5)
    assert own.read(threading.Event()) == [Reading("mine", 12.5)]
    assert counted.name == "RAPL"
    with pytest.raises(Unreadable, match="no program is known"):
        sources.of("mps", ["0"], None)[0].read(threading.Event())


def test_the_log_is_added_to_and_a_full_disk_stops_only_the_log(tmp_path: Path) -> None:
    path = tmp_path / "power.csv"
    sampler = Sampler([Script(30.0)], 0.05, "node1 ")
    sampler.keeps_rows = True
    sampler.start()
    wait(lambda: sampler.energy()["readings"] >= 2)
    sampler.log_to(path)
    wait(lambda: sampler.lines >= 5)
    sampler.stop()
    lines = path.read_text().splitlines()
    assert lines[0] == "time,source,watts"
    assert len(lines) == sampler.lines
    when, source, watts = lines[1].split(",")
    assert abs(float(when) - time.time()) < 60
    assert (source, watts) == ("node1 card", "30.00")
    again = Sampler([Script(31.0)], 0.05)
    again.keeps_rows = True
    again.log_to(path)
    again.start()
    wait(lambda: again.lines > len(lines))
    again.stop()
    assert path.read_text().count("time,source,watts") == 1
    assert path.read_text().splitlines()[: len(lines)] == lines
    full = Sampler([Script(32.0)], 0.05)
    full.keeps_rows = True
    full.log_to(tmp_path / "full.csv")
    (tmp_path / "full.csv").symlink_to("/dev/full")
    full.start()
    wait(lambda: full.failed)
    wait(lambda: full.energy()["readings"] >= 3)  # it goes on
    full.stop()
    with pytest.raises(StorageError):  # a device, which has no end
        Sampler([], 0.05).log_to(tmp_path / "full.csv")
    assert full.failed == {"log": "No space left on device"}
    assert full.remarks() == ["power: the log cannot be written (No space left on device); the run goes on without it"]
