"""Label maps of logits that come in slabs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unet.models.label_maps import label_map, label_map_of


@pytest.mark.parametrize("shape", [(9, 6, 5), (17, 6, 5), (4, 9, 11), (1, 3, 3), (9, 12, 5), (40, 7, 6)])
@pytest.mark.parametrize("planes", [1, 4, 9])
def test_slabs_give_the_classes_of_the_whole(shape: tuple[int, int, int], planes: int) -> None:
    logits = torch.randn(5, 9, 6, 5, generator=torch.Generator().manual_seed(0))

    def slabs() -> Iterator[Tensor]:
        for low in range(0, 9, planes):
            slab = logits[:, low : low + planes].clone()
            yield slab
            slab.fill_(float("nan"))  # its memory is used for the next one

    whole = F.interpolate(logits[None], shape, mode="trilinear", align_corners=False)[0]
    found = label_map_of(slabs(), 9, shape)
    highest, second = whole.topk(2, 0).values
    clear = highest - second > 1e-5  # rounding may turn what is nearly equal
    assert clear.float().mean() > 0.99
    assert torch.equal(found[clear], label_map(whole)[clear])
