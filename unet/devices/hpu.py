"""Habana Gaudi through Intel's bridge (habana_frameworks): lazy or eager mode is chosen before torch is imported; graph
boundaries after backward and optimiser step; HPU graphs in lazy mode, hpu_backend in eager mode.

Written against the bridge 1.19.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import files
from unet.config.flags import DeviceOptions
from unet.devices import launchers
from unet.devices.accelerator import Accelerator
from unet.devices.base import USUAL, Device, Workload, first_line, listed
from unet.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import datetime

    import torch
    from torch import nn

    from unet.devices.launchers import Rank

RECIPE_MB = 8192
RECIPES = "PT_HPU_RECIPE_CACHE_CONFIG"  # path, whether it is emptied at the start, megabytes that it may have
LISTS = {"lower": "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", "fp32": "PT_HPU_AUTOCAST_FP32_OPS_LIST"}


class HPU(Accelerator):
    """One Gaudi card; each process has one, which torch calls `hpu`."""

    name = "hpu"
    graphs = operator_lists = recipes = pins = True
    orders = False
    collective = "hccl"
    visible, outside = "HABANA_VISIBLE_MODULES", ("HABANA_VISIBLE_DEVICES",)
    vendor = "habana_frameworks"
    static_shapes = single = True
    forced = Accelerator.forced | {"PT_HPU_LAZY_MODE", "HLS_MODULE_ID", RECIPES, *LISTS.values()}

    def __init__(self, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> None:
        self.lazy = self.compiles_slices = options.use_lazy_mode
        self._count: Callable[[int], None] | None = None  # of recorded training graphs
        self._core = importlib.import_module("habana_frameworks.torch.core")
        super().__init__(options, rank, workload)

    @classmethod
    def environment(cls, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> dict[str, str]:
        result = super().environment(options, rank, workload)
        result["PT_HPU_LAZY_MODE"] = "1" if options.use_lazy_mode else "0"
        if modules := listed(cls.visible):  # a process may have a list of its own
            if rank.world > 1 or os.environ.get("HLS_MODULE_ID") not in modules:  # which a user may set
                result["HLS_MODULE_ID"] = modules[rank.local % len(modules)]
        elif rank.world > 1 and not (len(listed(cls.outside[0])) == 1 and launchers.has_own_card(rank, cls.outside)):
            result["HLS_MODULE_ID"] = str(rank.local)
        if options.recipe_cache:
            result[RECIPES] = f"{recipe_folder(options.recipe_cache)},False,{RECIPE_MB}"
        if options.precision_ops:
            result |= write_lists(Path(options.precision_ops))
        return result

    @classmethod
    def missing(cls, options: DeviceOptions) -> str | None:
        if not cls.installed():
            return "habana_frameworks is not installed; start Intel's Gaudi container, which has it."
        version = importlib.metadata.version("torch")
        if options.use_lazy_mode and "git" not in version.partition("+")[2]:
            return (
                f"lazy mode needs Intel's build of torch, and this is {version}; use the torch of the Gaudi container,"
                " or leave out --use-lazy-mode."
            )
        try:
            import torch

            importlib.import_module("habana_frameworks.torch")
            is_lazy = importlib.import_module("habana_frameworks.torch.utils.internal").is_lazy()
        except (ImportError, OSError, AssertionError) as error:
            return f"habana_frameworks does not load ({first_line(error)}); its version must fit torch {version}."
        if bool(is_lazy) != options.use_lazy_mode:
            now, asked = ("lazy", "eager") if is_lazy else ("eager", "lazy")
            return (
                f"the bridge was loaded in {now} mode before this program could ask for {asked} mode; type:"
                f" export PT_HPU_LAZY_MODE={int(options.use_lazy_mode)}"
            )
        if not torch.hpu.is_available():  # type: ignore[attr-defined]
            return "no Gaudi card answers; compare hl-smi, and start the container with the Habana runtime."
        return None

    def require(self, options: DeviceOptions) -> None:
        super().require(options)
        if options.capture == "on" and not options.use_lazy_mode:
            raise DeviceError("--capture: HPU graphs are for lazy mode.", "Type --use-lazy-mode as well.")

    def describe(self) -> str:
        mode = "lazy mode" if self.lazy else "eager mode" + (", compiled by hpu_backend" if self.compiled() else "")
        module = os.environ.get("HLS_MODULE_ID")
        return f"hpu, {self._api.get_device_name()}, {mode}" + (f", module {module}" if module else "")

    def dtypes(self) -> tuple[str, ...]:
        return ("bf16",)

    def compiled(self) -> bool:
        """In eager mode too where it is left to the device: the vendor's default way."""
        return not self.lazy and self.options.compile != "off"

    def compile(self, module: nn.Module) -> nn.Module:
        import torch

        torch._dynamo.config.optimize_ddp = False
        compiled: nn.Module = torch.compile(module, backend="hpu_backend", dynamic=False)  # type: ignore[assignment]
        return compiled

    def capture(self, module: nn.Module, training: bool = True) -> nn.Module:
        if not self.lazy or self.options.capture == "off":
            return module
        graphs = importlib.import_module("habana_frameworks.torch.hpu.graphs")
        if training:
            recorded = graphs.ModuleCacher(max_graphs=2)(
                module, allow_unused_input=True, have_grad_accumulation=self.workload.accumulate > 1
            )
            self._count = recorded.set_iteration_count
        else:
            recorded = graphs.wrap_in_hpu_graph(copy.copy(module))  # a wrapper of its own around the same weights
        captured: nn.Module = recorded
        return captured

    def micro_batch(self, number: int) -> None:
        if self._count:
            self._count(number)

    def join(self, store: Any, timeout: datetime.timedelta) -> None:
        own = {"RANK": self.rank.rank, "WORLD_SIZE": self.rank.world, "LOCAL_RANK": self.rank.local}
        own["LOCAL_WORLD_SIZE"] = self.rank.local_world
        os.environ.update({name: str(number) for name, number in own.items()})  # before the bridge sets its own
        importlib.import_module("habana_frameworks.torch.distributed.hccl")  # registers the backend
        super().join(store, timeout)

    def parallel_options(self) -> dict[str, Any]:
        return super().parallel_options() | {"bucket_cap_mb": 100, "static_graph": self.workload.accumulate == 1}

    def optimizer(self, name: str, groups: list[dict[str, Any]], **how: Any) -> torch.optim.Optimizer | None:
        """Fused AdamW and SGD; there is no fused Adam, whose L2 penalty is coupled."""
        if name not in ("adamw", "sgd"):
            return None
        fused = importlib.import_module("habana_frameworks.torch.hpex.optimizers")
        made: torch.optim.Optimizer = (
            fused.FusedAdamW(groups, eps=1e-8, **how) if name == "adamw" else fused.FusedSGD(groups, **how)
        )
        return made

    def flush(self) -> None:
        if self.lazy:
            self._core.mark_step()

    release = Device.release  # the bridge has no empty_cache

    def card_name(self) -> str:
        return os.environ.get("HLS_MODULE_ID", "")

    def report(self) -> list[str]:
        """Graph compilations and fallbacks to the CPU: both should be few."""
        metric = importlib.import_module("habana_frameworks.torch.hpu.metrics").metric_global
        counts = {
            name: dict(metric(name).stats()).get("TotalNumber", 0) for name in ("graph_compilation", "cpu_fallback")
        }
        return [f"{counts['graph_compilation']} graph compilations, {counts['cpu_fallback']} fallbacks to the CPU"]

    def is_out_of_memory(self, error: BaseException) -> bool:
        return super().is_out_of_memory(error) or "Allocation failed for size" in str(error)


def recipe_folder(name: str) -> Path:
    """The folder of --recipe-cache, made if it is not there; all ranks share it, and nothing in it is deleted. Raises
    UsageError for a path that the bridge cannot read."""
    path = Path(name).absolute()
    if "," in str(path):
        raise UsageError(f"--recipe-cache {path}: the path has a comma.", "Name a folder without a comma in its path.")
    files.make_folder(path)
    return path


def write_lists(path: Path) -> dict[str, str]:
    """Write the two operator lists of --precision-ops in the bridge's format, one name per line. Returns {variable:
    path}. Raises UsageError."""
    lists = files.read_json(path)
    if not isinstance(lists, Mapping) or not set(lists) <= set(LISTS) or not all(map(_names, lists.values())):
        raise UsageError(
            f"--precision-ops {path}: expected lists of operators by precision.",
            'Write for example {"lower": ["conv2d", "matmul"], "fp32": ["mul", "mean"]}.',
        )
    if both := set(lists.get("lower", ())) & set(lists.get("fp32", ())):
        raise UsageError(
            f"--precision-ops {path}: these operators are in both lists: {', '.join(sorted(both)[:3])}.",
            "Keep each in one list only.",
        )
    folder = Path(tempfile.gettempdir()) / f"unet-operators-{os.getuid()}-{files.fingerprint(dict(lists))}"
    files.make_folder(folder)
    for name, names in lists.items():
        files.write_text(folder / f"{name}.txt", "".join(f"{item}\n" for item in names))
    return {LISTS[name]: str(folder / f"{name}.txt") for name in lists}


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value)
