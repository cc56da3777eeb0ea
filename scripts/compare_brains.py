"""Compare the network of the brains task with numbers of the reference program (3d_very_deep_vae).

    python scripts/compare_brains.py tests/golden/vdvae_reference.json          # every configuration of the file
    python scripts/compare_brains.py tests/golden/vdvae_reference.json tiny8    # one of them

The file names configurations, and for each of them a seed from which weights, input and noise are drawn (`draw` has the
recipe) and what the reference program made of them in float64. The network is built anew from the configuration, in
float64 and in float32, and each section that the file has is compared: a table of the largest relative differences.
Arrays in `<first word of the file's name>_<configuration>.npz` beside the file are compared whole. Exit code 0: all
within their tolerance, 1: one is not, 2: the file cannot be used.

The relative difference is |found - expected| / |expected|, with a floor for what may be near zero by cancellation: the
root mean square of an array for its elements and their mean, the sum of the magnitudes for a sum of parameters, log-
likelihood and KL for the ELBO.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program of this checkout, installed or not

from brains_golden import INPUTS, PARTS, Drawn, Terms, beside, draw, layout, loss_terms, read, train

from unet.errors import UsageError
from unet.models import gaussians
from unet.models.vdvae import VDVAE, Output

FLOOR = float(np.float32(1e-5))  # of a prior's variance in the reference program alone; it rounds it so
LOSSES = "losses_before_step_1_2_3_and_after_step_3"
NOTES = {  # how far the reference program's own float32 run is from its float64 run
    "relative_difference_of_fp32_worst",
    "relative_difference_of_fp32_gradient_norms_worst",
}


class Tolerance(NamedTuple):
    """Largest relative differences: of a loss; of other values and norms; of norms and sums after steps; of arrays that
    the file rounds to float32.

    The rounding of a sum grows with the number of its elements. In float32 Adamax, which divides by the size of the
    gradient, may move an element either way whose gradient is as small as its rounding.
    """

    loss: float
    value: float
    steps: float
    array: float


TOLERANCES = {
    torch.float64: Tolerance(1e-10, 1e-10, 1e-9, 1e-6),
    torch.float32: Tolerance(1e-5, 1e-4, 1e-2, 1e-4),
}


def tolerance_of(record: Mapping[str, Any], dtype: torch.dtype) -> Tolerance:
    """In float32 at least four times what the file says of the reference program's own float32 run: a network whose
    deviations are near their bounds rounds more."""
    own = TOLERANCES[dtype]
    if dtype == torch.float64:
        return own
    value = max(own.value, *(4 * float(record.get(key, 0.0)) for key in NOTES))
    pairs = [(record.get("fp32_loss", 0.0), record.get("loss", 0.0))]
    for key, steps in record.items():
        if key.startswith("training_clip_"):
            pairs += zip(steps.get("fp32_losses", ()), steps.get(LOSSES, ()), strict=False)
    far = max(abs(a - b) / abs(b) if a and b else 0.0 for a, b in pairs)
    return own._replace(value=value, loss=max(own.loss, 4 * far))


class Row(NamedTuple):
    """A section: how many values, the largest relative difference and where it is, the tolerance."""

    section: str
    values: int
    difference: float
    where: str
    tolerance: float

    @property
    def within(self) -> bool:
        return self.difference <= self.tolerance


class Comparison:
    """The rows of one configuration at one precision."""

    def __init__(self, dtype: torch.dtype, record: Mapping[str, Any] | None = None) -> None:
        self.dtype, self.tolerance = dtype, tolerance_of(record or {}, dtype)
        self.rows: dict[str, Row] = {}
        self.floored = 0

    def add(
        self, section: str, where: str, found: Any, expected: Any, tolerance: float | None = None, floor: float = 0.0
    ) -> None:
        """Numbers or nested lists of them, or tensors; another shape, or a value that is not finite, is infinitely
        far."""
        a = np.asarray(found.detach() if isinstance(found, Tensor) else found, dtype=np.float64)
        try:
            b = np.asarray(expected, dtype=np.float64)
        except (TypeError, ValueError):  # lists of unequal lengths, words
            b = np.empty(0)
        if a.shape != b.shape:
            self.put(section, where, math.inf, tolerance)
        elif a.size:
            gap = np.abs(a - b)
            with np.errstate(divide="ignore", invalid="ignore"):
                far = np.where(gap == 0, 0.0, gap / np.maximum(np.abs(b), floor))
            self.put(section, where, float(np.nan_to_num(far, nan=np.inf).max()), tolerance, a.size)

    def add_summary(self, section: str, where: str, found: Tensor, expected: Mapping[str, Any]) -> None:
        """Shape, mean, standard deviation (by n - 1: none of one element) and first elements of a tensor."""
        spread = expected["std"] if found.numel() > 1 else 0.0
        floor = math.hypot(expected["mean"], spread)
        self.put(section, f"{where} shape", 0.0 if list(found.shape) == list(expected["shape"]) else math.inf)
        found = found.detach()
        self.add(section, f"{where} mean", found.mean(), expected["mean"], floor=floor)
        if found.numel() > 1:
            self.add(section, f"{where} std", found.std(), spread, floor=floor)
        first = expected["first"]
        self.add(section, f"{where} first", found.flatten()[: len(first)], first, floor=floor)

    def put(self, section: str, where: str, difference: float, tolerance: float | None = None, values: int = 1) -> None:
        old = self.rows.get(section)
        tolerance = self.tolerance.value if tolerance is None else tolerance
        new = Row(section, values, difference, where, tolerance)
        if old is not None:
            new = max(new, old, key=lambda row: row.difference)._replace(values=values + old.values)
        self.rows[section] = new


@contextlib.contextmanager
def reference_floor(table: Comparison) -> Iterator[None]:
    """Where a prior's variance is below the reference program's floor, compute the KL with that floor, which the
    program leaves out because it makes the KL negative; count these elements."""
    own = gaussians.kl

    def kl(mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor) -> Tensor:
        below = int((prior_std.detach() ** 2 < FLOOR).sum())
        if not below:
            return own(mean, std, prior_mean, prior_std)
        table.floored += below
        variance = (prior_std**2).clamp(min=FLOOR)
        return 0.5 * ((std**2 + (mean - prior_mean) ** 2) / variance - 1) + prior_std.log() - std.log()

    with mock.patch.object(gaussians, "kl", kl):
        yield


def scaled_latent(mean: Tensor, std: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
    """A latent as the reference program draws it at a temperature: the mean is scaled too."""
    return temperature * (mean + std * noise)


@contextlib.contextmanager
def captured(model: VDVAE, found: dict[str, Tensor]) -> Iterator[None]:
    """Keep the laterals, and what goes into and comes out of each residual block of the decoder: the stream after the
    latent and after the block."""

    def keep(before: str, after: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            found[before], found[after] = inputs[0].detach(), output.detach()

        return hook

    hooks = [
        layer.residual.register_forward_hook(keep(f"decoder.{n}.after_latent", f"decoder.{n}.after_residual"))
        for n, layer in enumerate(model.decoder)
    ]
    for level, (_, last) in enumerate(model.encoder):
        hooks.append(last.register_forward_hook(keep("", f"lateral.{level}")))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def compare(record: Mapping[str, Any], dtype: torch.dtype, arrays: Mapping[str, Any] | None = None) -> Comparison:
    """Every section of a configuration that the file has; raises UsageError where it has another layout."""
    table, drawn = Comparison(dtype, record), draw(record, dtype)
    try:
        compare_draws(table, drawn, record)
        with reference_floor(table):
            output = compare_pass(table, drawn, record)
            compare_training(table, drawn, record)
            with torch.no_grad():
                outputs = {"x_mean": output.mean, "x_std": output.std, **compare_generated(table, drawn, record)}
    except KeyError as error:
        raise layout(f"a section has no key {error}") from error
    if arrays is not None:
        compare_arrays(table, drawn, outputs, arrays)
    return table


def compare_draws(table: Comparison, drawn: Drawn, record: Mapping[str, Any]) -> None:
    """Sizes, names, weights and input: exactly the file's."""
    model = drawn.model
    for part, count in record.get("parameters", {}).items():
        own = sum(p.numel() for p in getattr(model, part).parameters()) if part in PARTS else -1
        table.add("parameters", part, own, count, 0)
    names = dict(model.named_parameters()).keys()
    if "gradient_norm" in record:
        odd = sorted(names ^ record["gradient_norm"].keys())
        table.put("names of parameters", odd[0] if odd else "", math.inf if odd else 0.0, 0, len(names))
    own_shapes = [list(shape) for shape in model.shape.latent_shapes(len(drawn.x))]
    table.put("noise_shapes", "", 0.0 if record["noise_shapes"] == own_shapes else math.inf, 0, len(own_shapes))
    for key in ("parameter_sha256", "input_sha256"):
        if key in record:
            table.put(key, "", 0.0 if getattr(drawn, key) == record[key] else math.inf, 0)


def compare_pass(table: Comparison, drawn: Drawn, record: Mapping[str, Any]) -> Output:
    """Features, outputs, the loss and its terms, the gradients of one pass."""
    model, features = drawn.model, dict[str, Tensor]()
    model.zero_grad()
    with captured(model, features):
        terms = loss_terms(drawn, record["configuration"].get("l2_reg_coeff", 1e-4))
    for section, prefix in (("laterals", "lateral."), ("features", "")):
        for name, expected in record.get(section, {}).items():
            if prefix + name in features:
                table.add_summary(section, name, features[prefix + name], expected)
            else:
                table.put(section, f"{name} is not in the network", math.inf)
    for key, value in (("x_mean", terms.output.mean), ("x_std", terms.output.std)):
        if key in record:
            table.add_summary(key, "", value, record[key])
    compare_losses(table, drawn, terms, record)
    terms.loss.backward()
    compare_gradients(table, model, record)
    return Output(*(value.detach() for value in terms.output))


def compare_losses(table: Comparison, drawn: Drawn, terms: Terms, record: Mapping[str, Any]) -> None:
    output, voxels, tolerance = terms.output, drawn.x[0].numel(), table.tolerance
    bits, kl = 1 / (voxels * math.log(2)), output.kl.detach().sum(1)
    size = float((terms.log_likelihood.detach().abs() + kl.abs()).mean())
    elbo = (terms.log_likelihood - kl).mean()
    # a tenth of a nat per voxel: densities above and below 1 cancel in a log-likelihood
    least = 0.1 * voxels
    mse = (output.mean - drawn.x).square().mean()
    for key, value, limit, floor in (
        ("log_likelihood", terms.log_likelihood, tolerance.value, least),
        ("kl_by_latent_from_the_top", output.kl.T, tolerance.value, 1e-3),
        ("mse", mse, tolerance.value, 0.0),
        ("l2_term", terms.l2, tolerance.value, 0.0),
        ("loss", terms.loss, tolerance.loss, size),
        ("elbo_bits_per_dimension_higher_is_better", elbo * bits, tolerance.value, size * bits),
        ("log_likelihood_bits_per_dimension", terms.log_likelihood.mean() * bits, tolerance.value, least * bits),
    ):
        if key in record:
            table.add(key, "", value, record[key], limit, floor)
    if table.dtype == torch.float32 and "fp32_loss" in record:
        table.add("fp32_loss", "", terms.loss, record["fp32_loss"], tolerance.loss, size)


def compare_gradients(table: Comparison, model: VDVAE, record: Mapping[str, Any]) -> None:
    """Norms of the parts, and of each parameter that both have (a floor of a millionth of the largest)."""
    for part, norm in record.get("gradient_norm_by_part", {}).items():
        table.add("gradient_norm_by_part", part, float(gradient_norm(getattr(model, part).parameters())), norm)
    expected, found = record.get("gradient_norm", {}), dict(model.named_parameters())
    floor = 1e-6 * max(expected.values(), default=0.0)
    for name in expected.keys() & found.keys():
        table.add("gradient_norm", name, float(gradient_norm([found[name]])), expected[name], floor=floor)


def gradient_norm(parameters: Any) -> Tensor:
    return torch.stack([p.grad.norm() for p in parameters]).norm()


def compare_training(table: Comparison, drawn: Drawn, record: Mapping[str, Any]) -> None:
    """Steps of Adamax, for each clip that the file has."""
    for key in record:
        if not (named := re.fullmatch(r"training_clip_(.+)", key)):
            continue
        expected, factor = record[key], record["configuration"].get("l2_reg_coeff", 1e-4)
        expected_losses = expected[LOSSES]
        rate = record["configuration"].get("learning_rate", 1e-3)
        losses, norms, model = train(drawn, float(named[1]), len(expected_losses) - 1, rate, factor)
        table.add(f"{key} losses", "", losses, expected_losses, table.tolerance.loss)
        if table.dtype == torch.float32 and "fp32_losses" in expected:
            table.add(f"{key} fp32_losses", "", losses, expected["fp32_losses"], table.tolerance.loss)
        if "gradient_norms_encoder_decoder_head" in expected:
            expected_norms = expected["gradient_norms_encoder_decoder_head"]
            table.add(f"{key} norms", "", norms, expected_norms, table.tolerance.steps)
        sums = expected.get("sum_of_each_parameter_after_3_steps", {})
        for name, parameter in model.named_parameters():
            if name in sums:
                own, floor = float(parameter.detach().sum()), float(parameter.detach().abs().sum())
                table.add(f"{key} sums", name, own, sums[name], table.tolerance.steps, floor)


def compare_generated(table: Comparison, drawn: Drawn, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Progressive reconstructions and samples, which come back by their names in the arrays' file."""
    model, outputs = drawn.model, dict[str, Tensor]()
    for side, expected in record.get("progressive_x_mean_kept_up_to_resolution", {}).items():
        if not side.isdigit():
            raise layout(f"progressive_x_mean_kept_up_to_resolution has a key {side!r} that is no number of voxels")
        found = outputs[f"progressive_mean_{side}"] = model.reconstruct(drawn.x, drawn.noise, int(side)).mean
        table.add_summary("progressive_x_mean", side, found, expected)
    for key, expected in record.items():
        right = re.fullmatch(r"sample_(?:temperature|right_way)_([0-9.e+-]+)(?:_scales_the_noise)?", key)
        theirs = re.fullmatch(r"sample_reference_way_([0-9.e+-]+)_scales_the_whole_latent", key)
        if right:
            output = model.sample(drawn.noise, float(right[1]))
            outputs[f"sample_mean_noise_{right[1]}"] = output.mean
            if right[1] == "1":
                outputs |= {"sample_mean": output.mean, "sample_std": output.std}
        elif theirs:
            with mock.patch.object(gaussians, "sample", scaled_latent):
                output = model.sample(drawn.noise, float(theirs[1]))
        if right or theirs:
            both = expected if "mean" in expected and isinstance(expected["mean"], dict) else {"mean": expected}
            for name, summary in both.items():
                table.add_summary(key, name, getattr(output, name), summary)
    return outputs


def compare_arrays(
    table: Comparison, drawn: Drawn, outputs: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray]
) -> None:
    """Whole arrays: weights, input and noise exactly, outputs relative to their root mean square."""
    exact = {"input": drawn.x, **dict(drawn.model.named_parameters())}
    exact |= {f"noise_{number}": value for number, value in enumerate(drawn.noise)}
    for name in arrays:
        values = arrays[name]
        if name in exact:
            table.add("arrays: weights, input, noise", name, exact[name], values, 0)
        elif name in outputs:
            floor = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
            table.add("arrays: outputs", name, outputs[name], values, table.tolerance.array, floor)


def show(table: Comparison) -> None:
    width = max(map(len, table.rows))
    print(f"  {'section':{width}}  values  difference  tolerance")
    for row in table.rows.values():
        outside = "" if row.within else f"  NOT WITHIN{' (' + row.where.strip() + ')' if row.where.strip() else ''}"
        print(f"  {row.section:{width}}  {row.values:6}  {row.difference:10.1e}  {row.tolerance:9.0e}{outside}")
    if table.floored:
        print(
            f"  {table.floored} prior variances below {FLOOR:.0e}: KL with the reference program's floor, not our own"
        )


def run(path: Path, name: str | None) -> int:
    torch.set_num_threads(1)  # most of these convolutions are too small for more, and other work would halt them
    records, outside, rows = read(path), list[str](), 0
    if name is not None and name not in records:
        raise UsageError(f"{path} has no configuration {name!r}", f"it has: {', '.join(records)}")
    for own, record in records.items() if name is None else [(name, records[name])]:
        stored, known = beside(path, own), NOTES | set(INPUTS)
        for dtype in TOLERANCES:
            kind = str(dtype).removeprefix("torch.")
            arrays = np.load(stored, allow_pickle=False) if stored.is_file() else None
            table = compare(record, dtype, arrays)
            print(f"{own}, {kind}{f', arrays of {stored.name}' if arrays is not None else ''}")
            show(table)
            rows += len(table.rows)
            outside += [f"{own} {kind} {row.section}" for row in table.rows.values() if not row.within]
            known |= {key for key in record if any(row.startswith(key) for row in table.rows)}
        if rest := sorted(record.keys() - known - {"progressive_x_mean_kept_up_to_resolution"}):
            print(f"  not compared: {', '.join(rest)}")
    print(f"{rows - len(outside)} of {rows} sections are within their tolerance", *outside, sep="\n  ")
    return 1 if outside else 0


def main(words: Sequence[str]) -> int:
    if len(words) not in (1, 2) or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words and words[0] in ("-h", "--help") else 2
    try:
        return run(Path(words[0]), words[1] if len(words) == 2 else None)
    except UsageError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
