"""Brain MRI, a very deep VAE: the system of 3d_very_deep_vae. It reconstructs volumes, samples new ones, and shows
where a volume differs from what it knows."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unet.data import checks, splits
from unet.data.cases import Case
from unet.errors import CheckpointError, UsageError
from unet.tasks.base import Column, Metric, Predictor, Step
from unet.tasks.brains import dataset, figure, passes
from unet.tasks.brains.settings import Settings as OwnSettings
from unet.tasks.cached import CachedTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.config.flags_training import PredictOptions
    from unet.data.cache.cached_case import CachedCase
    from unet.data.io.outputs import Output
    from unet.data.loading.loader import Loader
    from unet.models.vdvae import VDVAEShape

LN2 = math.log(2)
METRIC_NOTES = """ELBO and log-likelihood in bits a voxel, of the density at each voxel: higher is better, and the
largest possible is -log2(s sqrt(2 pi)) of the smallest standard deviation s, 5.318 with --output-clamp 0.01 1. ELBO is
the log-likelihood less the KL. In the brain: the voxels of the brain alone, with the whole KL. IW: the bound of
--samples, weighted by importance. AP and Dice of lesions, where there are any, over the voxels of the brain: of the
residual |x - m| / s, and of plain thresholding of the intensity (the better of bright and dark). Of several networks:
the means of their bounds and log-likelihoods, and the residual of their mixture."""


class Brains(CachedTask):
    """Volumes (1, side, side, side) -> mean and standard deviation of each voxel; scored by the ELBO."""

    Settings = OwnSettings
    settings: OwnSettings
    layout = dataset.LAYOUT
    metric = Metric("elbo_bits", "max", "ELBO", -math.inf, math.inf)
    item, subject, cost_unit = "volumes", "volume", "volumes"
    columns = (
        Column("elbo_bits", "ELBO", "{:.4f}"),
        Column("likelihood_bits", "log-l.", "{:.4f}"),
        Column("kl_nats", "KL nats", "{:.1f}"),
        Column("brain_elbo_bits", "brain ELBO", "{:.4f}"),
        Column("brain_likelihood_bits", "brain log-l.", "{:.4f}"),
        Column("importance_bits", "IW", "{:.4f}"),
        Column("mse", "MSE", "{:.5f}"),
        Column("lesion_ap", "les. AP", "{:.3f}"),
        Column("threshold_ap", "pl. AP", "{:.3f}"),
        Column("lesion_dice", "les. Dice", "{:.3f}"),
        Column("threshold_dice", "pl. Dice", "{:.3f}"),
    )
    metric_notes = METRIC_NOTES
    figure_title = "input, reconstruction, its standard deviation and the residual, from worst to best ELBO"
    terms = ("elbo_bits", "likelihood_bits", "kl_nats")
    curves: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ELBO and log-likelihood, bits a voxel": ("elbo_bits", "likelihood_bits"),
        "KL of all latents, nats": ("kl_nats",),
        "KL of each latent, nats (from the top down)": ("kl_",),
        "mean squared error": ("mse",),
        "norm of the gradients": ("gradient_norm",),
    }

    @property
    def output_noun(self) -> str:
        return "reconstruction"

    @property
    def figures_in_training(self) -> int:
        return self.settings.subjects_to_plot

    def describe_input(self) -> str:
        return f"{self.settings.resolution}^3"

    def input_shape(self) -> tuple[int, ...]:
        return 1, 1, *(self.settings.resolution,) * 3

    # Data.

    def index(self, root: Path) -> list[Case]:
        return dataset.index(root, self.settings)

    def require_layout(self, root: Path) -> None:
        dataset.find(root, self.settings)

    def cache_settings(self) -> dict[str, Any]:
        return dataset.cache_settings(self.settings)

    def preprocess(self, case: Case) -> dict[str, Any]:
        return dataset.prepare(case, self.settings)

    def named_splits(self) -> dict[str, Callable[[Sequence[str]], splits.Split]]:
        return {"fraction": lambda ids: dataset.split(ids, self.settings.train_fraction)}

    def patients(self, ids: Sequence[str]) -> dict[str, str]:
        return dataset.subjects(ids)

    def train_loader(
        self,
        cases: Sequence[CachedCase],
        shard: tuple[int, int],
        options: dict[str, Any],
        to_device: Callable[[Tensor], Tensor],
    ) -> Loader:
        from unet.data.loading.crops import Volumes
        from unet.data.loading.loader import Loader
        from unet.tasks.brains.transforms import EpochVolumes, Pipeline

        workers, options = self.loader_workers(options)
        volumes = Volumes(cases, self.config.device.data_on, to_device, shared=workers > 0)
        train, seed = self.config.train, self.config.general.seed
        pipeline = Pipeline(self.low) if train.augment else None
        batches = EpochVolumes(volumes, train.batch_size, seed, pipeline, shard, self.settings.kl_warmup)
        return Loader(batches, workers, options)

    def preview(self, cases: Sequence[CachedCase]) -> Iterator[Output]:
        """With --show-pipeline, for the first cases: a volume after the whole pipeline, and a page with the volume
        after each step alone."""
        import torch

        from unet.data.io.outputs import Output
        from unet.data.loading.sampling import generator
        from unet.tasks.brains import transforms

        count = min(self.settings.subjects_to_plot, self.config.train.batch_size)
        for case in cases[:count] if self.settings.show_pipeline else []:
            cube, key = torch.from_numpy(case.arrays()[0].copy()), passes.key_of(case.id)
            whole = transforms.augment(cube, generator(key), self.low)[0].numpy()
            yield Output(Path(), f"pipeline_test/{case.id}_full_brain.nii.gz", whole, "nifti", spacing=(1.0, 1.0, 1.0))
            after = {
                step.name: transforms.alone(step, cube, generator(key, number), self.low)[0].numpy()
                for number, step in enumerate(transforms.STEPS, 1)
            }
            page = figure.pipeline(cube[0].numpy(), {**after, "the whole pipeline": whole}, self.low)
            yield Output(Path(), f"pipeline_test/{case.id}.png", page, "png")

    def synthesize(self, path: Path, seed: int, overwrite: bool = False) -> None:
        from unet.tasks.brains import synthetic

        made = self.config.synthetic
        synthetic.write_set(path, made.patients, made.side, max(seed, 0), overwrite)

    # Network and training.

    def shape(self) -> VDVAEShape:
        """The lists of the network."""
        from unet.models.vdvae import VDVAEShape

        own, lists = self.settings, self.settings.lists(self.config.network.width)
        return VDVAEShape(
            latents=lists["latents_per_channel"],
            latent_channels=lists["channels_per_latent"],
            channels=lists["channels"],
            hidden=lists["channels_hidden"],
            channels_top_down=lists["channels_top_down"],
            hidden_top_down=lists["channels_hidden_top_down"],
            kernels=lists["kernel_sizes_bottom_up"],
            kernels_top_down=lists["kernel_sizes_top_down"],
            hidden_clamp=(own.hidden_clamp[0], own.hidden_clamp[1]),
            output_clamp=(own.output_clamp[0], own.output_clamp[1]),
            output_activation=own.output_activation,
            checkpoint=own.checkpoint_activations,
        )

    def random_batch(self) -> dict[str, Tensor]:
        import torch

        count, sides = self.config.train.batch_size, self.input_shape()[1:]
        batch = {"image": torch.rand(count, *sides) * (1 - self.low) + self.low, "index": torch.arange(count)}
        batch["noise_key"] = torch.full((count,), max(self.config.general.seed, 0))
        return {**batch, "kl_weight": torch.ones(count)} if self.settings.kl_warmup else batch

    def build_model(self) -> nn.Module:
        """10,335,682, 19,267,582 and 32,749,282 parameters at 32, 64 and 128 with the published lists."""
        from unet.models.vdvae import VDVAE

        return VDVAE(self.shape())

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Encoder, head and decoder, each clipped by its own norm (reference)."""
        return [{"params": list(getattr(model, part).parameters()), "part": part} for part in PARTS]

    def training_step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss: mean over the batch of KL - log-likelihood in nats, and the L2 term. Beside it ELBO and
        log-likelihood in bits a voxel, the KL in nats, in all and by latent from the top down."""
        from unet.models import gaussians
        from unet.models.vdvae import draw_noise

        x, key = batch["image"], int(batch["noise_key"][0])  # the key lies on the host
        mean, std, kl = model(x, draw_noise(self.shape(), len(x), x.device, self.compute.generator(key)))
        likelihood = gaussians.per_case(gaussians.log_likelihood(x, mean, std)).mean()
        by_latent, weight = kl.mean(0), batch["kl_weight"].mean() if "kl_weight" in batch else 1.0
        cost = by_latent.clamp(min=self.settings.free_bits).sum() if self.settings.free_bits else by_latent.sum()
        penalty = self.settings.l2 * squared_weights(model)
        bits, total = LN2 * x[0].numel(), by_latent.sum()
        return {
            "loss": weight * cost - likelihood + penalty,
            "elbo_bits": (likelihood - total) / bits,
            "likelihood_bits": likelihood / bits,
            "kl_nats": total,
            "l2": penalty,
            "mse": ((mean - x) ** 2).mean(),
            **{f"kl_{number}": value for number, value in enumerate(by_latent)},
        }

    def reference_step(self) -> tuple[nn.Module, Step]:
        return self.build_model(), lambda model, batch: self.training_step(model, batch)["loss"]

    def convert_checkpoint(self, state: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
        from unet.models.convert import strip_prefixes

        own = strip_prefixes(state)
        require_levels(own, self.settings.resolution)
        return self.build_model(), own

    def deployment(self) -> dict[str, Any]:
        raise UsageError(
            "A very deep VAE is not written as ONNX or OpenVINO: it draws random numbers at each latent, which every"
            " runtime does in a way of its own, so that its outputs cannot be compared with torch's.",
            "Type --to safetensors: the weights alone, under their own names.",
        )

    # Scoring and prediction.

    def warm_up(self, predictor: Predictor) -> None:
        import torch

        passes.decoded(predictor, self.shape(), torch.zeros(self.input_shape()), 0)

    def evaluate_case(
        self, case: CachedCase, predictor: Predictor, full: bool = False
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers: see METRIC_NOTES; `full` adds the importance-weighted bound, and lesions where the case has any.
        Arrays: image, mean, std (D, H, W)."""
        import numpy as np
        import torch

        from unet.metrics import anomalies
        from unet.models import gaussians

        image, mask = (np.array(array[0]) for array in case.arrays())
        volume, key = torch.from_numpy(image)[None, None], passes.key_of(case.id)
        found = passes.decoded(predictor, self.shape(), volume, key)
        mean, std, kl = passes.mixture(found)  # of several networks the bounds' mean is a bound, the mixture's is none
        likelihood = torch.stack([gaussians.log_likelihood(volume, *each[:2])[0, 0] for each in found]).mean(0)
        brain = torch.from_numpy(mask > 0)
        inside, nats = likelihood[brain].sum().item(), kl.sum().item()
        bits, brain_bits = LN2 * likelihood.numel(), LN2 * max(1, int(brain.sum()))
        numbers = {
            "elbo_bits": (likelihood.sum().item() - nats) / bits,
            "likelihood_bits": likelihood.sum().item() / bits,
            "kl_nats": nats,
            "brain_elbo_bits": (inside - nats) / brain_bits,
            "brain_likelihood_bits": inside / brain_bits,
            "mse": ((mean - volume) ** 2).mean().item(),
            **{f"kl_{number}": value for number, value in enumerate(kl[0].tolist())},
        }
        arrays = {"image": image, "mean": mean[0, 0].numpy(), "std": std[0, 0].numpy()}
        if full and self.settings.importance_samples > 1:
            count = self.settings.importance_samples
            numbers["importance_bits"] = passes.importance_weighted(predictor, self.shape(), volume, key, count) / bits
        if full and (mask == dataset.LESION).any():
            numbers |= anomalies.scores(residual(arrays), image, mask > 0, mask == dataset.LESION)
        return numbers, arrays

    def figure(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        return figure.panel(arrays["image"], arrays["mean"], arrays["std"], residual(arrays), self.low)

    def slices(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        return figure.slices(arrays["image"], arrays["mean"], residual(arrays), self.low)

    @property
    def low(self) -> float:
        """The background of a volume."""
        return dataset.bottom(self.settings)

    def find_inputs(self, paths: Sequence[Path]) -> dict[Path, list[Path]]:
        return {Path(name): [image] for name, image in dataset.inputs(paths, self.settings).items()}

    def output_files(self, image: Path, output_prefix: Path, options: PredictOptions) -> dict[str, Path]:
        names = ["reconstruction", "std", *(["residual"] if self.settings.residual else [])]
        found = {name: output_prefix.with_name(f"{output_prefix.name}_{name}.nii.gz") for name in names}
        if options.overlay:
            found["overlay"] = output_prefix.with_name(f"{output_prefix.name}_overlay.png")
        return found

    def predict_case(
        self,
        images: Sequence[Path],
        wanted: Sequence[Path],
        predictor: Predictor,
        options: PredictOptions,
    ) -> Iterator[Output]:
        """The reconstruction of a volume and its standard deviation, in the volume's own intensities, on its own grid;
        on request the residual in standard deviations, and a picture with the reconstruction by level. All float32.

        Raises DataError.
        """
        import torch

        from unet.data.io.outputs import Output

        for image in images:
            volume, grid = dataset.prepare_image(image, self.settings)
            x = torch.from_numpy(volume)[None]
            key = zlib.crc32(volume.tobytes())
            mean, std, _ = passes.mixture(passes.decoded(predictor, self.shape(), x, key))
            arrays = {"image": volume[0], "mean": mean[0, 0].numpy(), "std": std[0, 0].numpy()}
            if options.overlay:
                by_level = passes.by_level(predictor, self.shape(), x, key)
                page = figure.page(arrays, residual(arrays), by_level, self.low)
                yield Output(image, "overlay", page, "png")
            if self.settings.residual:
                yield Output(image, "residual", dataset.restore(residual(arrays), grid, values=False), "nifti")
            yield Output(image, "std", dataset.restore_deviation(arrays["std"], grid), "nifti")
            yield Output(image, "reconstruction", dataset.restore(arrays["mean"], grid), "nifti")

    def sample(self, predictor: Predictor, count: int, temperature: float, seed: int) -> Iterator[Output]:
        """Means of voxels (D, H, W) float32, of 1 mm, and the picture of the first of them."""
        from unet.data.io.outputs import Output

        shown = []
        for number in range(count):
            volume = passes.sample(predictor, self.shape(), seed, number, temperature)
            shown += [volume] if number < PICTURED else []
            yield Output(Path(), str(number), volume, "nifti", spacing=(1.0, 1.0, 1.0))
        yield Output(Path(), "picture", figure.samples(shown, self.low), "png")

    def sample_files(self, folder: Path, count: int) -> dict[str, Path]:
        found = {str(number): folder / f"sample_{number:04d}.nii.gz" for number in range(count)}
        return {**found, "picture": folder / "samples.png"}

    def check_raw(self, path: Path) -> checks.Report:
        from unet.tasks.brains import check

        return check.raw(path, self.settings, self.split)

    def check_cache(self, path: Path) -> checks.Report:
        from unet.tasks.brains import check

        return check.cached(path, self.settings)


PICTURED = 16  # samples that the picture shows
PARTS = ("encoder", "head", "decoder")
TASK = Brains


def squared_weights(model: nn.Module) -> Any:
    """Sum over the weight tensors (not the biases) of their mean square."""
    return sum((weight.square().mean() for weight in model.parameters() if weight.ndim > 1), start=0.0)


def residual(arrays: Mapping[str, Any]) -> Any:
    """(x - m) / s of each voxel."""
    return (arrays["image"] - arrays["mean"]) / arrays["std"]


def require_levels(state: Mapping[str, Any], resolution: int) -> None:
    """Raise CheckpointError where weights are of a network for another resolution."""
    levels = [name.split(".")[1] for name in state if name.startswith("encoder.")]
    side = 1 << max((int(level) for level in levels if level.isdigit()), default=0)
    if levels and side != resolution:
        raise CheckpointError(
            f"These weights are of a network for {side}^3 voxels; --resolution {resolution} is asked.",
            f"Type --resolution {side} or leave it out, or give other weights.",
        )
