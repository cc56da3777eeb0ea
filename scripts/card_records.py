"""Records of what scripts/gpu_check.sh has measured, for performance/records/.

python scripts/card_records.py FOLDER

FOLDER is that of the check. Of its runs `performance/lever-*` (UNet3D with each lever off in turn) it makes one record,
of each `performance/benchmark-*` another, in FOLDER/records/. To publish one, copy it to performance/records/ and type
`python scripts/records.py`. It prints whether the marks were reached.
"""

from __future__ import annotations

import datetime
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

BEST, AIM, ORDER, WAIT = 76.0, 100.0, 1.15, 0.02  # samples/s, samples/s, by channels first, share of the time
LOGS = ("metrics.jsonl", "config.json", "environment.json", "summary.json")


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def card_of(environment: dict[str, Any]) -> str:
    """The name of the card as a word: "cuda, NVIDIA H200, CUDA 13.0" -> "nvidia-h200"; of a processor "cpu"."""
    kind, *rest = (part.strip() for part in environment["device"].split(","))
    name = kind if kind == "cpu" or not rest else rest[0]
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def marks(levers: dict[str, dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """(mark, what was measured, whether it is reached) of those that can be told."""
    rates = {name: run["images_per_second"] for name, run in levers.items()}
    name = max(rates, key=lambda key: rates[key])
    top, wait = rates[name], levers[name]["data_wait_fraction"]
    found = [(f">= {BEST:g} samples/s", f"{top:.1f}", top >= BEST), (f"{AIM:g} samples/s", f"{top:.1f}", top >= AIM)]
    if {"all", "channels-first"} <= set(rates):
        ratio = rates["all"] / rates["channels-first"]
        found.append((f"channels last >= {ORDER} x channels first", f"{ratio:.2f}", ratio >= ORDER))
    return [*found, (f"data wait <= {WAIT:.0%}", f"{wait:.2%}", wait <= WAIT)]


def table(levers: dict[str, dict[str, Any]]) -> list[str]:
    """The levers in Markdown, the fastest first."""
    base = levers.get("all", {}).get("images_per_second")
    lines = ["| settings | samples/s | of `all` | data wait | peak memory, GB |", "|---|---|---|---|---|"]
    for name, run in sorted(levers.items(), key=lambda item: -item[1]["images_per_second"]):
        rate, memory = run["images_per_second"], run["peak_memory_bytes"] / 1e9
        share = f"{rate / base:.2f}" if base else "-"
        lines.append(f"| {name} | {rate:.2f} | {share} | {run['data_wait_fraction']:.2%} | {memory:.1f} |")
    return lines


def written(folder: Path, about: dict[str, Any], page: list[str]) -> None:
    """README.md and record.json of a record."""
    commands = [f"    {line}" for line in about["command"]]
    text = [f"# {about['what']}: {about['figure']}", "", *commands, "", *page]
    (folder / "README.md").write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    (folder / "record.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def fresh(root: Path, run: Path, task: str, slug: str) -> tuple[Path, dict[str, Any]]:
    """(a new folder of a record, the environment of a run)."""
    environment = read(run / "environment.json")
    day = datetime.date.fromtimestamp((run / "environment.json").stat().st_mtime)
    folder = root / "records" / f"{day.isoformat()}_{card_of(environment)}_{task}_{slug}"
    shutil.rmtree(folder, ignore_errors=True)  # this script's own, of the check's last start
    folder.mkdir(parents=True)
    for name in ("environment.json", "config.json"):
        shutil.copyfile(run / name, folder / name)
    return folder, environment


def of_levers(root: Path) -> Path | None:
    """The record of UNet3D's step with each lever off in turn; None where none was measured."""
    paths = sorted(path.parent for path in root.glob("performance/lever-*/summary.json"))
    runs = {path.name.removeprefix("lever-"): path for path in paths}
    if not runs:
        return None
    levers = {name: read(run / "summary.json") for name, run in runs.items()}
    best = max(levers, key=lambda name: levers[name]["images_per_second"])
    settings = read(runs[best] / "config.json")["settings"]
    task = str(setting(settings, "general", "task"))
    folder, environment = fresh(root, runs[best], task, "levers")
    for name, run in runs.items():
        (folder / name).mkdir()
        for log in LOGS:
            shutil.copyfile(run / log, folder / name / log)
    rate = levers[best]["images_per_second"]
    about = {
        "track": "speed",
        "task": task,
        "what": f"training step on one card, {setting(settings, 'device', 'precision')}, batch"
        f" {setting(settings, 'train', 'batch_size')}, crops of {side(setting(settings, 'task', 'patch'))}",
        "figure": f"{rate:.2f} samples/s",
        "value": rate,
        "better": "more",
        "holder": f"unet {environment['unet']}",
        "changed": f"the fastest settings: {best}",
        "command": [read(run / "config.json")["command"] for run in runs.values()],
    }
    reached = [f"| {mark} | {found} | {'yes' if yes else 'no'} |" for mark, found, yes in marks(levers)]
    page = [
        f"On {environment['device']}, torch {environment['packages']['torch']}. Each run trains with its loader as in"
        " any training; the first steps are left out. `all` has every lever on, each other one what its name says.",
        "",
        *table(levers),
        "",
        "| mark | measured | reached |",
        "|---|---|---|",
        *reached,
    ]
    written(folder, about, page)
    print("\n".join(f"{'reached' if yes else 'missed'}: {mark} ({found})" for mark, found, yes in marks(levers)))
    return folder


def of_benchmark(root: Path, run: Path) -> Path:
    """The record of one benchmark."""
    result, name = read(run / "benchmark.json"), run.name.removeprefix("benchmark-")
    folder, environment = fresh(
        root, run, result["task"], f"benchmark-{name.removeprefix(result['task']).strip('-') or 'step'}"
    )
    shutil.copyfile(run / "benchmark.json", folder / "benchmark.json")
    rate = result["images_per_second"]["ours"]
    about = {
        "track": "speed",
        "task": result["task"],
        "what": f"training step on one card, {result['size']}, batch {result['batch_size']}, {result['precision']}",
        "figure": f"{rate:.2f} {result['item']}/s",
        "value": rate,
        "better": "more",
        "holder": f"unet {environment['unet']}",
        "changed": "first measurement on this card",
        "command": [read(run / "config.json")["command"]],
    }
    written(folder, about, [f"On {result['device']}. `benchmark.json` has the seconds of each round."])
    return folder


def setting(settings: dict[str, Any], group: str, name: str) -> Any:
    """The value of a setting of config.json, which keeps it with its source."""
    return settings[group][name]["value"]


def side(sides: list[int]) -> str:
    """[128, 128, 128] -> "128 x 128 x 128"."""
    return " x ".join(map(str, sides))


def main(root: Path) -> int:
    made = [of_levers(root)]
    made += [of_benchmark(root, path.parent) for path in sorted(root.glob("performance/benchmark-*/benchmark.json"))]
    print("\n".join(f"record: {folder}" for folder in made if folder) or "nothing was measured")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
