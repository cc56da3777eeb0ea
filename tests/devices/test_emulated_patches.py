"""Patches changed on an emulated device: the host's bits, and nothing that the device refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulator import NoCompiler, environment

pytestmark = pytest.mark.slow
START = {"hpu": "import habana_frameworks.torch.core", "mlu": "import torch_mlu"}
CODE = """
import dataclasses, json, pathlib, sys
START
import numpy as np, torch
from unet.data.cache.cached_case import CachedCase
from unet.data.loading.crops import Volumes
from unet.data.loading.patches import EpochPatches
from unet.data.transforms.augmentation import NAMES, Augmentation

torch.set_num_threads(1)
shape = (2, 14, 20, 24)
draws = np.random.default_rng(0)
np.save("a.npy", draws.normal(size=shape).astype(np.float32))
np.save("a_mask.npy", draws.integers(0, 4, (1, *shape[1:])).astype(np.uint8))
cases = [CachedCase("a", pathlib.Path("a.npy"), pathlib.Path("a_mask.npy"), shape, (1,))]
always = dataclasses.replace(Augmentation(), **dict.fromkeys((*NAMES, "blur_channel", "coarse_channel"), 1.0))
found = {}
for patch in ((12, 16, 12), (1, 16, 24), (4, 24, 20)):
    for name in ("all", *NAMES):
        how = (Volumes(cases), patch, 2, 1, 5, 0.0, always if name == "all" else always.alone(name))
        here = EpochPatches(*how, outside=(-1.0, 255))[1, 0]
        late = EpochPatches(*how, outside=(-1.0, 255), late=True)
        there = late.finish(late[1, 0], lambda tensor: tensor.to("KIND"))
        assert there["image"].device.type == there["mask"].device.type == "KIND"
        same = torch.equal(here["mask"], there["mask"].cpu()) and torch.equal(here["image"], there["image"].cpu())
        found[f"{name} {patch}"] = same
print(json.dumps(found))
"""


@pytest.mark.parametrize(("kind", "lazy"), [("hpu", "0"), ("hpu", "1"), ("mlu", "0")])
def test_a_device_changes_patches_as_the_host_does(kind: str, lazy: str, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    try:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment(kind, log), "PT_HPU_LAZY_MODE": lazy}
    except NoCompiler as error:
        pytest.skip(str(error))
    code = CODE.replace("START", START[kind]).replace("KIND", kind)
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 33 and [name for name, same in found.items() if not same] == []
    assert json.loads(log.read_text()).get("violations") == []
