"""The tables of records in performance/README.md, and what is wrong with records and with numbers that have none.

python scripts/records.py            writes the tables between their markers
python scripts/records.py --check    writes nothing, says what is wrong, and ends with 1 if there is something

A record is a folder `performance/records/<date>_<device>_<task>_<slug>/` with README.md, raw logs, environment.json,
config.json (or the settings of a script in record.json), and record.json: {"track", "task", "what", "figure", "value",
"better", "holder", "changed", "command"}. Tracks: speed (the same work, faster or in less memory) and score (the same
data, better). Of records of the same work the best value holds the place in the table.

This is a script and no command of the program, since the records lie in the repository and are not installed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECORDS = Path("performance/records")
PAGE = Path("performance/README.md")
BEGIN, END = "<!-- records: made by scripts/records.py -->", "<!-- end of the records -->"
NAME = re.compile(r"\d{4}-\d\d-\d\d_[a-z0-9-]+_[a-z0-9]+_[\w.-]+")
TRACKS = {"speed": "Speed: the same work, faster or in less memory", "score": "Score: the same data, better"}
KEYS = {"track": str, "task": str, "what": str, "figure": str, "value": (int, float), "better": str, "holder": str}
KEYS |= {"changed": str, "command": list}
LOGS = ("metrics.jsonl", "benchmark.json", "run.log", "log.txt", "result.json")
PAGES = ("README.md", "docs/*.md", "weights/*.md", "data/*.md", "scripts/*.md", "performance/README.md")

COUNT = r"(?:\d[\d.,]*|two|three|four|five|six|seven|eight|nine|ten|twenty|a hundred)"
SCORE = r"(?:dsc|dice|elbo|rand|hd95|iou|accuracy|average precision|likelihood|bits a voxel)"
CLAIMS = [  # words that give a figure somebody must have measured
    re.compile(rf"\b{COUNT} times (?:as|the|a plain|torch|longer|faster|slower|less|more)\b", re.IGNORECASE),
    re.compile(rf"\b{COUNT} (?:%|per cent) (?:faster|slower|longer|less|more|better)\b", re.IGNORECASE),
    re.compile(rf"\b{SCORE}\b[^.|\n]{{0,40}}?\b\d+\.\d{{2,}}\b", re.IGNORECASE),
    re.compile(rf"(?<![\d-])\b\d\.\d{{2,}}\b[^.|\n]{{0,40}}\b{SCORE}\b", re.IGNORECASE),
]
HELD = re.compile(r"\]\((?:[\w./-]*records/([\w.-]+)[^)]*|https?://[^)]+)\)")  # a record, or where others published it


def folders(root: Path) -> list[Path]:
    return sorted(path for path in (root / RECORDS).iterdir() if path.is_dir())


def about(folder: Path) -> dict[str, Any]:
    """record.json. Raises ValueError in words where it is missing or damaged."""
    try:
        found = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except OSError:
        raise ValueError("no record.json") from None
    except ValueError as error:
        raise ValueError(f"record.json: {error}") from None
    for key, kind in KEYS.items():
        if not isinstance(found.get(key), kind) or found[key] in ("", []):
            raise ValueError(f"record.json has no {key}")
    return dict(found)


def wrong_with(folder: Path) -> list[str]:
    """What a record lacks, in words."""
    try:
        found = about(folder)
    except ValueError as error:
        return [str(error)]
    wrong = [] if NAME.fullmatch(folder.name) else ["its name is not <date>_<device>_<task>_<slug>"]
    if found["track"] not in TRACKS or found["better"] not in ("more", "less"):
        wrong.append(f"track {found['track']!r} or better {found['better']!r} is unknown")
    if f"_{found['task']}_" not in folder.name:
        wrong.append(f"task {found['task']} is not that of its name")
    places = [folder, *(path for path in folder.iterdir() if path.is_dir())]

    def has(*names: str) -> bool:
        return any((place / name).is_file() for place in places for name in names)

    wrong += [] if has("environment.json") else ["no environment.json"]
    wrong += [] if has("config.json") or found.get("settings") else ["no config.json, and no settings in record.json"]
    wrong += [] if has(*LOGS) else ["no raw log"]
    page = folder / "README.md"
    if not page.is_file():
        return [*wrong, "no README.md"]
    text = page.read_text(encoding="utf-8")
    plain = " ".join(text.replace("\\\n", " ").split())
    wrong += [f"README.md does not have the command {line!r}" for line in found["command"] if line not in plain]
    numbers = re.findall(r"\d+\.\d+", found["figure"])
    return wrong + [f"README.md does not have the figure {number}" for number in numbers if number not in text]


def holders(records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The records that hold their place: of those of the same work the best, and of equals the first."""
    best: dict[tuple[str, str, str], str] = {}
    for name, record in sorted(records.items()):
        key = record["track"], record["task"], record["what"]
        sign = 1 if record["better"] == "more" else -1
        if key not in best or sign * record["value"] > sign * records[best[key]]["value"]:
            best[key] = name
    return {name: records[name] for name in records if name in best.values()}


def tables(records: dict[str, dict[str, Any]]) -> str:
    """The tables of both tracks, in Markdown."""
    lines = []
    for track, title in TRACKS.items():
        lines += [f"### {title}", "", "| task | what | figure | held by | what made it | record |", "|" + "---|" * 6]
        for name, record in sorted(holders(records).items(), key=lambda item: (item[1]["task"], item[0])):
            if record["track"] == track:
                date, device, _, slug = name.split("_", 3)
                cells = [record[key].replace("|", "\\|") for key in ("task", "what", "figure", "holder", "changed")]
                lines.append(f"| {' | '.join(cells)} | [{slug}](records/{name}/README.md), {device}, {date} |")
        lines.append("")
    return "\n".join(lines)


def updated(text: str, made: str) -> str:
    """The page with these tables. Raises ValueError where its markers are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} has no markers {BEGIN} and {END}")
    return f"{before}{begin}\n\n{made}\n{end}{after}"


def blocks(text: str) -> Iterator[str]:
    """The paragraphs, points of lists and rows of tables of a page, without its blocks of code. A sentence that ends
    with a colon belongs to the list or table below it, and a heading of a table to each of its rows."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE) if "\n    " in text else text
    intro = head = ""
    for part in re.split(r"\n\s*\n", text):
        lines = part.strip("\n").splitlines()
        if lines and lines[0].startswith("|"):
            head = lines[0]
            yield from (f"{intro}\n{head}\n{line}" for line in lines[2:])
            continue
        points = re.split(r"\n(?=- |\d+\. )", "\n".join(lines))
        yield from (f"{intro}\n{point}" if point.startswith(("- ", "1. ")) else point for point in points)
        intro = points[-1] if points and points[-1].rstrip().endswith(":") else ""


def claims(text: str) -> list[str]:
    """The figures of a page that no record holds and for which it names no source: the words around each."""
    found = []
    for block in blocks(text):
        plain = " ".join(block.split())
        if HELD.search(block):
            continue
        found += [match[0] for pattern in CLAIMS if (match := pattern.search(plain))]
        row, head = block.rpartition("\n")[2], block.split("\n")[-2] if block.count("\n") else ""
        if row.startswith("|") and re.search(SCORE, head, re.IGNORECASE) and (match := re.search(r"\d+\.\d{2,}", row)):
            found.append(match[0])
    return found


def problems(root: Path) -> list[str]:
    """All that is wrong, in words: records, the tables, figures of pages without a record."""
    wrong = [f"{RECORDS / folder.name}: {words}" for folder in folders(root) for words in wrong_with(folder)]
    if not wrong:
        text = (root / PAGE).read_text(encoding="utf-8")
        if updated(text, tables(read(root))) != text:
            wrong.append(f"{PAGE}: the tables are not those of the records; type: python scripts/records.py")
    for path in sorted(page for pattern in PAGES for page in root.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        names = [name for name in re.findall(r"records/([\w.-]+)", text) if NAME.fullmatch(name)]
        wrong += [
            f"{path.relative_to(root)}: no record {name}" for name in names if not (root / RECORDS / name).is_dir()
        ]
        wrong += [f"{path.relative_to(root)}: no record for {words!r}" for words in claims(text)]
    return wrong


def read(root: Path) -> dict[str, dict[str, Any]]:
    return {folder.name: about(folder) for folder in folders(root)}


def main() -> int:
    parser = argparse.ArgumentParser(description="The tables of records in performance/README.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; say what is wrong")
    if not parser.parse_args().check:
        path = ROOT / PAGE
        path.write_text(updated(path.read_text(encoding="utf-8"), tables(read(ROOT))), encoding="utf-8")
    wrong = problems(ROOT)
    print("\n".join(wrong) or "every record is whole, and every figure has one")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
