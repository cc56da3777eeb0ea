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
from unet.errors import CheckpointError
from unet.tasks.base import Column, Metric, Predictor, Step
from unet.tasks.brains import dataset, figure
from unet.tasks.brains.settings import Settings as OwnSettings
from unet.tasks.cached import CachedTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.config.flags import PredictOptions
    from unet.data.cache.cached_case import CachedCase
    from unet.data.io.outputs import Output
    from unet.data.loading.loader import Loader
    from unet.models.vdvae import Output as Decoded
    from unet.models.vdvae import VDVAEShape

LN2 = math.log(2)
METRIC_NOTES = """ELBO and log-likelihood in bits a voxel, of the density at each voxel: higher is better, and the
largest possible is -log2(s sqrt(2 pi)) of the smallest standard deviation s, 5.318 with --output-clamp 0.01 1. ELBO is
the log-likelihood less the KL. In the brain: the voxels of the brain alone, with the whole KL. IW: the bound of
--samples, weighted by importance. AP and Dice of lesions, where there are any, over the voxels of the brain: of the
residual |x - m| / s, and of plain thresholding of the intensity (the better of bright and dark)."""


class Brains(CachedTask):
    """Volumes (1, side, side, side) -> mean and standard deviation of each voxel; scored by the ELBO."""

    Settings = OwnSettings
    settings: OwnSettings
    layout = dataset.LAYOUT
    metric = Metric("elbo_bits", "max")
    item, subject, cost_unit = "volumes", "volume", "volumes"
    columns = (
        Column("elbo_bits", "ELBO", "{:.4f}"),
        Column("likelihood_bits", "log-lik.", "{:.4f}"),
        Column("kl_nats", "KL nats", "{:.1f}"),
        Column("brain_elbo_bits", "ELBO brain", "{:.4f}"),
        Column("brain_likelihood_bits", "log-lik. brain", "{:.4f}"),
        Column("importance_bits", "IW", "{:.4f}"),
        Column("mse", "MSE", "{:.5f}"),
        Column("lesion_ap", "lesion AP", "{:.3f}"),
        Column("threshold_ap", "plain AP", "{:.3f}"),
        Column("lesion_dice", "lesion Dice", "{:.3f}"),
        Column("threshold_dice", "plain Dice", "{:.3f}"),
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

    def cache_settings(self) -> dict[str, Any]:
        return dataset.cache_settings(self.settings)

    def preprocess(self, case: Case) -> dict[str, Any]:
        return dataset.prepare(case, self.settings)

    def named_splits(self) -> dict[str, Callable[[Sequence[str]], splits.Split]]:
        return {"fraction": lambda ids: dataset.split(ids, self.settings.train_fraction)}

    def train_loader(
        self,
        cases: Sequence[CachedCase],
        shard: tuple[int, int],
        options: dict[str, Any],
        to_device: Callable[[Tensor], Tensor],
    ) -> Loader:
        from unet.data.loading.crops import Volumes
        from unet.data.loading.loader import Loader
        from unet.tasks.brains.loading import EpochVolumes

        workers, options = self.loader_workers(options)
        volumes = Volumes(cases, self.config.device.data_on, to_device, shared=workers > 0)
        train, seed = self.config.train, self.config.general.seed
        low = self.low if train.augment else None
        batches = EpochVolumes(volumes, train.batch_size, seed, low, shard, self.settings.kl_warmup)
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
            cube, key = torch.from_numpy(case.arrays()[0][0].copy()), key_of(case.id)
            whole = transforms.augment(cube, generator(key), self.low).numpy()
            yield Output(Path(), f"pipeline_test/{case.id}_full_brain.nii.gz", whole, "nifti", spacing=(1.0, 1.0, 1.0))
            after = {
                step.name: transforms.alone(step, cube, generator(key, number), self.low).numpy()
                for number, step in enumerate(transforms.STEPS, 1)
            }
            page = figure.pipeline(cube.numpy(), {**after, "the whole pipeline": whole}, self.low)
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

        x = batch["image"]
        mean, std, kl = model(x)
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

    # Scoring and prediction.

    def warm_up(self, predictor: Predictor) -> None:
        import torch

        self.decoded(predictor, torch.zeros(self.input_shape()), 0)

    def decoded(self, predictor: Predictor, volume: Tensor, key: int, sampled: int | None = None) -> list[list[Tensor]]:
        """Mean, standard deviation (1, 1, D, H, W) and KL by latent (1, L) of a volume (1, 1, D, H, W) by each network,
        with noise that depends on `key` alone. `sampled`: sample of this number, whose KL is that of the drawn latents
        and not the closed form."""
        from unet.data.loading.sampling import generator
        from unet.models.vdvae import Drawing, draw_noise

        noise = draw_noise(self.shape(), 1, "cpu", generator(key, 0 if sampled is None else sampled))
        how = Drawing(sampled_kl=sampled is not None)

        def work(network: Any, put: Callable[[Tensor], Tensor]) -> Decoded:
            found: Decoded = network.decode(network.encode(put(volume)), [put(each) for each in noise], how)
            return found

        return predictor.each(work)

    def evaluate_case(
        self, case: CachedCase, predictor: Predictor, full: bool = False
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers: see METRIC_NOTES; `full` adds the importance-weighted bound, and lesions where the case has any.
        Arrays: image, mean, std (D, H, W)."""
        import numpy as np
        import torch

        from unet.models import gaussians
        from unet.tasks.brains import anomalies

        image, mask = (np.array(array[0]) for array in case.arrays())
        volume = torch.from_numpy(image)[None, None]
        mean, std, kl = mixture(self.decoded(predictor, volume, key_of(case.id)))
        likelihood = gaussians.log_likelihood(volume, mean, std)[0, 0]
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
            numbers["importance_bits"] = self.importance_weighted(predictor, volume, key_of(case.id)) / bits
        if full and (mask == dataset.LESION).any():
            numbers |= anomalies.scores(residual(arrays), image, mask)
        return numbers, arrays

    def importance_weighted(self, predictor: Predictor, volume: Tensor, key: int) -> float:
        """log of the mean of p(x, z) / q(z | x) over the samples, in nats: a bound of log p(x) that is tighter than the
        ELBO (Burda, Grosse and Salakhutdinov, ICLR 2016). Of the first network."""
        import torch

        from unet.models import gaussians

        weights = []
        for number in range(1, self.settings.importance_samples + 1):
            mean, std, kl = self.decoded(predictor, volume, key, sampled=number)[0]
            weights.append(gaussians.log_likelihood(volume, mean, std).double().sum() - kl.double().sum())
        return float(torch.logsumexp(torch.stack(weights), 0) - math.log(len(weights)))

    def figure(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        return figure.panel(arrays["image"], arrays["mean"], arrays["std"], residual(arrays), self.low)

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
            mean, std, _ = mixture(self.decoded(predictor, x, key))
            arrays = {"image": volume[0], "mean": mean[0, 0].numpy(), "std": std[0, 0].numpy()}
            if options.overlay:
                by_level = self.by_level(predictor, x, key)
                page = figure.page(arrays, residual(arrays), by_level, self.low)
                yield Output(image, "overlay", page, "png")
            if self.settings.residual:
                yield Output(image, "residual", dataset.restore(residual(arrays), grid, values=False), "nifti")
            yield Output(image, "std", dataset.restore_deviation(arrays["std"], grid), "nifti")
            yield Output(image, "reconstruction", dataset.restore(arrays["mean"], grid), "nifti")

    def by_level(self, predictor: Predictor, volume: Tensor, key: int) -> dict[int, Any]:
        """side -> reconstruction (D, H, W) from the latents of at most that many voxels a side, by the first
        network."""
        from unet.data.loading.sampling import generator
        from unet.models.vdvae import draw_noise

        noise = draw_noise(self.shape(), 1, "cpu", generator(key, 0))
        sides = [1 << level for level in range(self.settings.levels + 1)]

        def work(network: Any, put: Callable[[Tensor], Tensor]) -> list[Tensor]:
            placed = [put(each) for each in noise]
            return [network.reconstruct(put(volume), placed, side).mean for side in sides]

        return {side: mean[0, 0].numpy() for side, mean in zip(sides, predictor.each(work)[0], strict=True)}

    def sample(self, predictor: Predictor, count: int, temperature: float, seed: int) -> Iterator[Output]:
        """Means of voxels (D, H, W) float32, of 1 mm, and the picture of the first of them."""
        from unet.data.io.outputs import Output
        from unet.data.loading.sampling import generator
        from unet.models.vdvae import draw_noise

        shown = []
        for number in range(count):
            noise = draw_noise(self.shape(), 1, "cpu", generator(seed, number))

            def work(network: Any, put: Callable[[Tensor], Tensor], noise: list[Tensor] = noise) -> Decoded:
                found: Decoded = network.sample([put(each) for each in noise], temperature)
                return found

            volume = predictor.each(work)[0][0][0, 0].numpy()
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


def mixture(outputs: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation of the equal mixture of several networks' Gaussians, and their mean KL."""
    import torch

    if len(outputs) == 1:
        mean, std, kl = outputs[0]
        return mean, std, kl
    means, stds, kls = (torch.stack(parts) for parts in zip(*outputs, strict=True))
    return means.mean(0), (stds.square().mean(0) + means.var(0, correction=0)).sqrt(), kls.mean(0)


def residual(arrays: Mapping[str, Any]) -> Any:
    """(x - m) / s of each voxel."""
    return (arrays["image"] - arrays["mean"]) / arrays["std"]


def key_of(case: str) -> int:
    """A number for a case's noise: the same on every rank and device."""
    return zlib.crc32(case.encode())


def require_levels(state: Mapping[str, Any], resolution: int) -> None:
    """Raise CheckpointError where weights are of a network for another resolution."""
    levels = [name.split(".")[1] for name in state if name.startswith("encoder.")]
    side = 1 << max((int(level) for level in levels if level.isdigit()), default=0)
    if levels and side != resolution:
        raise CheckpointError(
            f"These weights are of a network for {side}^3 voxels; --resolution {resolution} is asked.",
            f"Type --resolution {side} or leave it out, or give other weights.",
        )
