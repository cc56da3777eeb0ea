"""Brain MRI, a very deep VAE: the system of 3d_very_deep_vae. It reconstructs volumes, samples new ones, and shows
where a volume differs from what it knows."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet.data import checks, splits
from unet.data.cases import Case
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
    from unet.models.vdvae import VDVAE, Output as Decoded, VDVAEShape

LN2 = math.log(2)
METRIC_NOTES = """ELBO and log-likelihood in bits a voxel, of the density at each voxel: higher is better, and the largest
possible is -log2(s sqrt(2 pi)) of the smallest standard deviation s, 5.318 with --output-clamp 0.01 1. ELBO is the
log-likelihood less the KL. In the brain: the voxels of the brain alone, with the whole KL. IW: the importance-weighted
bound of --samples. AP and Dice of lesions, where there are any: of the residual |x - m| / s, and of plain thresholding
of the intensity (the better of bright and dark), over the voxels of the brain."""


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

    def describe_input(self) -> str:
        return f"{self.settings.resolution}^3"

    def input_shape(self) -> tuple[int, ...]:
        return 1, 1, *(self.settings.resolution,) * 3

    # Data.

    def index(self, root: Path) -> list[Case]:
        return dataset.index(root, self.settings)

    def cache_settings(self) -> dict[str, Any]:
        """What decides the content of the cache."""
        made = self.settings
        found: dict[str, Any] = {"resolution": made.resolution}
        if made.output_activation == "sigmoid":
            found["output_activation"] = made.output_activation
        return found | ({"volume": made.volume} if made.volume is not None else {})

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
        low = 0.0 if self.settings.output_activation == "sigmoid" else -1.0
        batches = EpochVolumes(volumes, train.batch_size, seed, low if train.augment else None, shard)
        batches.kl_warmup = self.settings.kl_warmup
        return Loader(batches, workers, options)

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
        dataset.require_levels(own, self.settings.resolution)
        return self.build_model(), own

    # Scoring and prediction.

    def warm_up(self, predictor: Predictor) -> None:
        import torch

        self.decoded(predictor, torch.zeros(self.input_shape()), 0)

    def decoded(self, predictor: Predictor, volume: Tensor, key: int, number: int = 0) -> list[list[Tensor]]:
        """Mean, standard deviation (1, 1, D, H, W) and KL by latent (1, L) of a volume (1, 1, D, H, W) by each network,
        with noise that depends on `key` and the sample's `number` alone; with a sample's number above 0 the KL is that
        of the drawn latents (see `VDVAE.decode`)."""
        from unet.data.loading.sampling import generator
        from unet.models.vdvae import draw_noise

        noise = draw_noise(self.shape(), 1, "cpu", generator(key, number))

        def work(network: Any, put: Callable[[Tensor], Tensor]) -> Decoded:
            found: Decoded = network.decode(network.encode(put(volume)), [put(each) for each in noise])
            return found

        return predictor.each(work)


PARTS = ("encoder", "head", "decoder")
TASK = Brains


def squared_weights(model: nn.Module) -> Any:
    """Sum over the weight tensors (not the biases) of their mean square."""
    return sum((weight.square().mean() for weight in model.parameters() if weight.ndim > 1), start=0.0)


def key_of(case: str) -> int:
    """A number for a case's noise: the same on every rank and device."""
    return zlib.crc32(case.encode())
