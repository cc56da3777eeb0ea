"""The text of a result: what was measured, one thing a line, numbers below one another."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from unet import host
from unet.benchmarks import results
from unet.benchmarks.breakdown import PARTS
from unet.commands import tables

LABEL, NUMBER = 20, 10
INDENT = 2 + LABEL + NUMBER + 1


def row(label: str, number: str, rest: str = "") -> list[str]:
    """A line: its label, a number to the right, the rest; wrapped to the terminal below the rest."""
    line, room = f"  {label:<{LABEL}}{number:>{NUMBER}} {rest}".rstrip(), tables.width()
    if len(line) <= room or room < 2 * INDENT:
        return tables.text(line, 4)
    return textwrap.wrap(line, room, subsequent_indent=" " * INDENT, break_long_words=False, break_on_hyphens=False)


def text(result: Mapping[str, Any]) -> str:
    """All of a result of one process."""
    batch = f"batch {result['batch_size']}, " if "images_per_second" in result else ""
    source = {"none": "made in memory", "synthetic": "synthetic data", "real": "real data"}[result["source"]]
    lines = tables.text(f"{result['task']}: {result['size']}, {batch}{result['precision']}, {source}")
    lines += tables.text(str(result["device"]))
    count = f"{host.counted(result['rounds'], 'round')} of {host.counted(result['steps'], 'step')}"
    lines += tables.text(f"{count} after the warm-up: median (least to most)")
    if found := result.get("unfinished"):
        lines += tables.text(f"Unfinished: {results.measured(found)}.")
    lines.append("")
    if "images_per_second" in result:
        lines += rates(result)
        lines += limits(result)
    lines += prediction(result)
    if "breakdown" in result:
        lines += ["", *parts(result["breakdown"])]
    for name, facts in result.get("peers", {}).items():
        lines += ["", *peer(name, facts, result["item"])]
    if "profile" in result:
        lines += ["", *operators(result["profile"])]
    return "\n".join(lines)


def rates(result: Mapping[str, Any]) -> list[str]:
    """Items a second and memory of each loop, and how they compare."""
    item, lines = result["item"], list[str]()
    names = {"plain": "plain fp32 step", "ours": f"{result['precision']} step"}
    for name, rate in result["images_per_second"].items():
        if name == "loader":
            continue
        low, high = result["images_per_second_range"][name]
        memory = host.format_bytes(result["peak_memory_bytes"][name])
        lines += row(
            names.get(name, f"{name} step"), f"{rate:.2f}", f"{item}/s ({low:.2f} to {high:.2f}), peak memory {memory}"
        )
    if ratio := result["ours_over_plain"]:
        share = f"{result['ours_over_plain_memory']:.2f} of its memory"
        lines += row("", f"{ratio['median']:.2f}", f"times the plain one ({spread(ratio)}), {share}")
    for name, facts in result.get("peers", {}).items():
        ratio = facts["ours_over"]
        lines += row("", f"{ratio['median']:.2f}", f"times {name} ({spread(ratio)})")
    if "loader" in result["images_per_second"]:
        low, high = result["images_per_second_range"]["loader"]
        rate, times = result["images_per_second"]["loader"], result["loader_over_step"]
        lines += row("loader alone", f"{rate:.2f}", f"{item}/s ({low:.2f} to {high:.2f}), {times:.1f} times the step")
    return lines


def spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['min']:.2f} to {ratio['max']:.2f}"


def limits(result: Mapping[str, Any]) -> list[str]:
    """Latency, arithmetic, power, and what bounds the step and the loader."""
    if result["step_latency"] is None:  # stopped before
        return []
    item, lines = result["item"], latency("step, waited for", result["step_latency"])
    done, top = result["model_flops_per_second"], result["ceiling"]
    number, unit = arithmetic(done)
    known = f", {result['mfu']:.1%} of the data sheet's" if result["mfu"] else ""
    if top:
        most, share = top["matrix_flops_per_second"], result["share_of_matrix_product"]
        most_here = " ".join(arithmetic(most))
        known = f": {share:.1%} of a matrix product in {top['precision']} here, {most_here}{known}"
    lines += row("arithmetic", number, f"{unit}{known}")
    if top:
        copied = top["copy_bytes_per_second"] / 1e9
        lines += row("copy on the device", f"{copied:.2f}", "GB/s, read and written")
    if convs := result["convolutions"]:
        seconds = convs["seconds"]
        each = f"forward {1000 * seconds['forward']:.1f}, gradients of inputs {1000 * seconds['input_gradient']:.1f}"
        each += f", of weights {1000 * seconds['weight_gradient']:.1f}"
        lines += row(f"{convs['count']} convolutions", f"{1000 * seconds['all']:.1f}", f"ms alone: {each}")
        lines += row("", f"{convs['step_over_convolutions']:.2f}", "times that is the step")
    if loader := result.get("loader"):
        copied = f"{host.format_bytes(loader['copy_bytes_per_second'])}/s"
        rate = f"{loader['bytes_per_second'] / 1e6:.1f}"
        lines += row("loader", rate, f"MB/s: {loader['share_of_copy']:.2g} of a plain copy ({copied})")
    if used := result["power"]:
        one = item.rstrip("s")
        words = f"{used['items_per_joule']:.4g} {item} per joule, {result['joules_per_item']:.4g} joules a {one}"
        lines += row("power", f"{used['watts']:.2f}", f"W on average, {words}")
    return lines


def arithmetic(rate: float) -> tuple[str, str]:
    """(number, unit) of operations a second."""
    return (f"{rate / 1e12:.2f}", "TFLOP/s") if rate >= 1e12 else (f"{rate / 1e9:.2f}", "GFLOP/s")


def latency(label: str, found: Mapping[str, float]) -> list[str]:
    rest = ", ".join(f"{name[1:]} % {1000 * value:.1f}" for name, value in found.items() if name != "mean")
    return row(label, f"{1000 * found['mean']:.1f}", f"ms in the mean{', ' if rest else ''}{rest}")


def prediction(result: Mapping[str, Any]) -> list[str]:
    found = result["predict"]
    if not found:  # stopped before
        return []
    rate = f"{result['item']}/s in batches of {found['batch_size']}"
    low, high = found["images_per_second_range"]
    lines = row("prediction", f"{found['images_per_second']:.2f}", f"{rate} ({low:.2f} to {high:.2f})")
    if ratio := found.get("ours_over"):
        plain = f"times the plain one in fp32 ({spread(ratio)}), {found['plain_images_per_second']:.2f} {rate}"
        lines += row("", f"{ratio['median']:.2f}", plain)
    return lines + latency("pass, waited for", found["latency"])


def parts(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Where the time of a step goes."""
    lines = tables.text("Where a step goes, each part waited for:")
    for name, words in PARTS.items():
        part = found[name]
        least, most = 1000 * part["min"], 1000 * part["max"]
        lines += row(
            words.split(" and ")[0] if len(words) > LABEL else words,
            f"{1000 * part['seconds']:.1f}",
            f"ms {part['share']:6.1%} ({least:.1f} to {most:.1f})",
        )
    return lines


def peer(name: str, facts: Mapping[str, Any], item: str) -> list[str]:
    """A peer's network beside ours, and what is not the same."""
    lines = tables.text(f"{name} {facts['version']}: {facts['network']}, {facts['step']}")
    one = item.rstrip("s")
    shapes = [" x ".join(map(str, facts[key])) for key in ("output_shape", "output_shape_ours")]
    pairs = (
        ("parameters", f"{facts['parameters']:,}", f"{facts['parameters_ours']:,}"),
        (f"GFLOP a {one}", f"{facts['flops_per_item'] / 1e9:.3f}", f"{facts['flops_per_item_ours'] / 1e9:.3f}"),
        ("output", *shapes),
    )
    for label, theirs, ours in pairs:
        lines += tables.text(f"  {label:<{LABEL}}{theirs:>16}   ours {ours}{' (the same)' if ours == theirs else ''}")
    lines += [line for words in facts["differences"] for line in tables.text(f"  not the same: {words}", 4)]
    return lines


def operators(rows: Sequence[Mapping[str, Any]], shown: int = 12) -> list[str]:
    """The operators that take most of the time of their own."""
    lines = [f"  {'operator':<28}{'calls':>7}{'in all':>8}{'itself':>8}  torch's name"]
    for each in rows[:shown]:
        words = str(each["words"])[:27]
        cells = f"{each['calls']:>7}{each['share']:>8.1%}{each['self_share']:>8.1%}"
        lines.append(f"  {words:<28}{cells}  {each['operator']}"[: max(tables.width(), 56)])
    return [*tables.text("Operators of three steps, by the time of their own:"), *lines]
