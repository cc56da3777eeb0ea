"""The way of a case to the network's grid and back, in every format; cases that do not fit."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import read_json
from tasks.folder import sets as made

from unet.data.cache import cache
from unet.data.cache.cached_case import CachedCase
from unet.data.cases import Case
from unet.data.io import outputs, volumes
from unet.data.loading.crops import Volumes
from unet.data.loading.patches import EpochPatches
from unet.data.preprocessing import resize
from unet.errors import CacheError, DataError
from unet.models.label_maps import label_map_of
from unet.tasks.folder import check, dataset, fingerprint, sets
from unet.tasks.folder.settings import Settings

OWN = Settings(
    channels=("T1",),
    classes=("background", "organ"),
    label_values=(0, 1),
    orientation="IPL",
    spacing=(2.0, 1.0, 1.0),
    normalize=("zscore",),
    patch=(8, 16, 16),
)


def hot(labels: Any, classes: int) -> Any:
    """Label map (D, H, W) -> logits (K, D, H, W)."""
    return np.stack([(labels == number).astype(np.float32) for number in range(classes)])


def back(logits: Any, way: dataset.Way) -> Any:
    """Logits (K, D, H, W) on the network's grid -> classes on the file's own."""
    slabs = (torch.from_numpy(logits[:, low : low + 5]) for low in range(0, logits.shape[1], 5))
    return dataset.placed(label_map_of(slabs, way.size[0], way.kept).numpy(), way)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".tif", ".npy", ".png"])
def test_a_mask_comes_back_as_it_was(suffix: str, tmp_path: Path) -> None:
    image, mask = made.volume(0)
    image_path = made.write(tmp_path / f"i{suffix}", image.clip(0, 255).astype(np.uint8) if suffix == ".png" else image)
    mask_path = made.write(tmp_path / f"m{suffix}", mask * np.uint8(255))
    own = dataclasses.replace(OWN, label_values=(0, 255), orientation="IPL" if suffix[1] in "nm" else "as-stored")
    if suffix in (".tif", ".npy", ".png"):
        own = dataclasses.replace(own, orientation="as-stored", spacing=(1.0, 1.0, 1.0))
    made_of = dataset.prepare(Case("c", (image_path,), (mask_path,)), own)
    assert made_of["image"].shape == (1, *made_of["mask"].shape[1:])
    assert made_of["image"].std() == pytest.approx(1, abs=1e-3)
    assert set(np.unique(made_of["mask"])) == {0, 1}
    classes = back(hot(made_of["mask"][0], 2), dataset.way_from(made_of))
    values = dataset.labels_of(own).values_of(classes)
    out = tmp_path / f"out{suffix}"
    outputs.write(out, outputs.Output(image_path, "mask", values, "like", names={"class_255": "organ"}))
    before, after = (volumes.read_head(path) for path in (mask_path, out))
    assert np.array_equal(volumes.read_labels(after), volumes.read_labels(before))
    assert volumes.mismatch(before, after) == []


@pytest.mark.parametrize("orientation", ["IPL", "SPR", "LIP"])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_a_mask_without_a_place_is_turned_as_its_image(suffix: str, orientation: str, tmp_path: Path) -> None:
    image, mask = made.volume(0)
    image_path = made.write(tmp_path / "i.nii.gz", image)
    placed = made.write(tmp_path / "m.nii.gz", mask)
    bare = made.write(tmp_path / f"m{suffix}", mask)
    own = dataclasses.replace(OWN, orientation=orientation)
    head = volumes.read_head(image_path)
    one, other = (dataset.read_mask("c", path, head, own) for path in (placed, bare))
    assert np.array_equal(one, other)


def test_resampled_and_back_the_mask_is_nearly_the_same(tmp_path: Path) -> None:
    image, mask = made.volume(0, (40, 44, 30))
    files = made.write(tmp_path / "i.nii.gz", image), made.write(tmp_path / "m.nii.gz", mask)
    own = dataclasses.replace(OWN, spacing=(1.5, 1.3, 1.3))
    prepared = dataset.prepare(Case("c", files[:1], files[1:]), own)
    assert prepared["mask"].shape == (1, 40, 34, 31)
    classes = back(hot(prepared["mask"][0], 2), dataset.way_from(prepared))
    both = 2 * np.count_nonzero((classes == 1) & (mask == 1)) / (np.count_nonzero(classes) + np.count_nonzero(mask))
    assert both > 0.9


def test_images_stored_in_other_directions_become_the_same_numbers(tmp_path: Path) -> None:
    image, mask = made.volume(0)
    found = []
    for codes in ("RAS", "LPS", "SAL"):
        paths = []
        for name, array in (("i", image), ("m", mask)):
            stored = nibabel.Nifti1Image(array, made.AFFINE).as_reoriented(
                nibabel.orientations.ornt_transform(
                    nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
                )
            )
            paths.append(tmp_path / f"{name}_{codes}.nii.gz")
            nibabel.save(stored, paths[-1])
        prepared = dataset.prepare(Case("c", (paths[0],), (paths[1],)), OWN)
        found.append((prepared["image"], prepared["mask"]))
        classes = back(hot(prepared["mask"][0], 2), dataset.way_from(prepared))
        assert np.array_equal(classes, np.asanyarray(nibabel.load(paths[1]).dataobj))
    for image_of, mask_of in found[1:]:
        assert np.array_equal(image_of, found[0][0])
        assert np.array_equal(mask_of, found[0][1])


@pytest.mark.parametrize("orientation", ["IPL", "as-stored"])
def test_a_mask_stored_in_another_direction_than_its_image(orientation: str, tmp_path: Path) -> None:
    image, mask = made.volume(0)
    turned = nibabel.Nifti1Image(mask, made.AFFINE).as_reoriented(nibabel.orientations.axcodes2ornt("LPI"))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    files = made.write(tmp_path / "i.nii.gz", image), made.write(tmp_path / "m.nii.gz", mask)
    own = dataclasses.replace(OWN, orientation=orientation)
    plain = dataset.prepare(Case("c", files[:1], files[1:]), own)
    other = dataset.prepare(Case("c", files[:1], (tmp_path / "turned.nii.gz",)), own)
    assert np.array_equal(plain["mask"], other["mask"])


def test_a_mask_on_another_grid_is_refused_or_resampled(tmp_path: Path) -> None:
    image, mask = made.volume(0)
    files = made.write(tmp_path / "i.nii.gz", image), tmp_path / "m.nii.gz"
    fine = np.repeat(np.repeat(mask, 2, 0), 2, 1)
    affine = np.diag([0.5, 0.5, 2.0, 1.0])
    affine[:3, 3] = -0.25, -0.25, 0
    nibabel.save(nibabel.Nifti1Image(fine, affine), files[1])
    _, fault, _ = dataset.read_case("c", sets.Found(files[:1], files[1]), OWN)
    assert "image and mask differ: size 20 x 24 x 12 and 40 x 48 x 12; spacing" in fault.message
    assert "--resample-masks" in fault.hint
    own = dataclasses.replace(OWN, resample_masks=True)
    prepared = dataset.prepare(Case("c", files[:1], files[1:]), own)
    made.write(tmp_path / "same.nii.gz", mask)
    plain = dataset.prepare(Case("c", files[:1], (tmp_path / "same.nii.gz",)), OWN)
    assert np.mean(prepared["mask"] != plain["mask"]) < 0.01


def test_a_mask_of_an_image_without_a_place_in_space_is_not_moved(tmp_path: Path) -> None:
    """Without sform and qform a header says nothing of where its voxels lie: sizes alone are compared."""
    image, mask = made.volume(0)
    files = tmp_path / "i.nii.gz", made.write(tmp_path / "m.nii.gz", mask)
    bare = nibabel.Nifti1Image(image, np.diag([1.0, 1.0, 2.0, 1.0]))
    bare.set_sform(None, 0)
    bare.set_qform(None, 0)
    nibabel.save(bare, files[0])
    head = volumes.read_head(files[0])
    assert (head.codes, head.affine) == (None, None)
    for own in (OWN, dataclasses.replace(OWN, resample_masks=True)):
        for one, other in (files, files[::-1]):
            assert volumes.mismatch(volumes.read_head(one), volumes.read_head(other)) == []
        found = dataset.read_mask("c", files[1], head, own)
        assert np.array_equal(found.transpose(2, 1, 0), mask)
    nibabel.save(nibabel.Nifti1Image(mask[:-1], np.eye(4)), tmp_path / "less.nii.gz")
    fault = dataset.read_case("c", sets.Found(files[:1], tmp_path / "less.nii.gz"), own)[1]
    assert "size 12 x 24 x 20 and 12 x 24 x 19" in fault.message
    assert "does not say where it lies, so it cannot be resampled" in fault.hint


def test_an_image_without_a_spacing_is_told_where_the_network_has_one(tmp_path: Path) -> None:
    np.save(tmp_path / "i.npy", made.volume(0)[0])
    own = dataclasses.replace(OWN, spacing=(5.0, 0.8, 0.8))
    notes = dataset.prepare_image("c", [tmp_path / "i.npy"], own)[2]
    assert len(notes) == 1
    assert "they are taken as 1 mm, those of the network are 5 x 0.8 x 0.8 mm" in notes[0]
    assert not dataset.prepare_image("c", [tmp_path / "i.npy"], dataclasses.replace(OWN, spacing=(1.0, 1.0, 1.0)))[2]
    path = made.write(tmp_path / "i.nii.gz", made.volume(0)[0])
    assert not dataset.prepare_image("c", [path], own)[2]


def test_the_border_of_zeros_is_cut_away_and_comes_back(tmp_path: Path) -> None:
    image, mask = made.volume(0)
    wide = [np.pad(array, 6) for array in (image, mask)]
    files = made.write(tmp_path / "i.nii.gz", wide[0]), made.write(tmp_path / "m.nii.gz", wide[1])
    prepared = dataset.prepare(Case("c", files[:1], files[1:]), dataclasses.replace(OWN, crop_background=True))
    assert prepared["mask"].shape == (1, 12, 24, 20)
    classes = back(hot(prepared["mask"][0], 2), dataset.way_from(prepared))
    assert np.array_equal(classes, wide[1])


def test_two_channels_from_two_files_or_one(tmp_path: Path) -> None:
    image, _ = made.volume(0)
    paths = [made.write(tmp_path / f"c_{n:04}.nii.gz", image * (n + 1)) for n in range(2)]
    own = dataclasses.replace(
        OWN, channels=("a", "b"), normalize=("none", "ct"), intensities=(0, 0, 0, 0, 0, 100, 50, 2)
    )
    prepared, way, _ = dataset.prepare_image("c", paths, own)
    assert prepared.shape == (2, 12, 24, 20)
    assert np.array_equal(way.turn.undo(prepared[0]), image)
    assert prepared[1].max() == 25
    with pytest.raises(DataError, match=r"c: has 1 channel \(c_0000.nii.gz\); the network takes 2: a, b"):
        dataset.prepare_image("c", paths[:1], own)
    other = made.write(tmp_path / "other.nii.gz", image[:-1])
    with pytest.raises(DataError, match=r"c_0000.nii.gz and other.nii.gz lie on two grids: size"):
        dataset.prepare_image("c", [paths[0], other], own)


@pytest.mark.parametrize("codes", ["LPS", "SAR", "none"])
@pytest.mark.parametrize("orientation", ["as-stored", "IPL"])
def test_channels_stored_in_other_ways_lie_on_one_another(codes: str, orientation: str, tmp_path: Path) -> None:
    """One grid with its axes backwards or in another order, or without a place in space."""
    from nibabel import orientations

    image, mask = made.volume(1)
    paths = [made.write(tmp_path / f"case_{number:04}.nii.gz", image) for number in range(2)]
    stored: Any = nibabel.load(paths[1])
    if codes == "none":
        header = stored.header.copy()
        stored = nibabel.Nifti1Image(image, None)
        stored.header.set_zooms(header.get_zooms())
    else:
        wanted = orientations.axcodes2ornt(tuple(codes))
        stored = stored.as_reoriented(orientations.ornt_transform(orientations.io_orientation(stored.affine), wanted))
    nibabel.save(stored, paths[1])
    own = dataclasses.replace(OWN, channels=("a", "b"), orientation=orientation, normalize=("none", "none"))
    found, _, _ = dataset.prepare_image("case", paths, own)
    assert np.array_equal(found[0], found[1])
    label = made.write(tmp_path / "mask.nii.gz", mask)
    case = sets.Found(tuple(paths), label)
    looked = fingerprint._look(("case", case, True), (0,))
    assert looked.samples[0] == looked.samples[1]
    assert not check.look(("case", ("case", case)), own, None)["faults"]


def test_colours_are_scaled_by_their_type(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 100, (6, 7, 3)).astype(np.uint8)
    from PIL import Image

    Image.fromarray(colours).save(tmp_path / "a.png")
    own = Settings(
        channels=("red", "green", "blue"),
        classes=("background", "a"),
        label_values=(0, 1),
        orientation="as-stored",
        spacing=(1.0, 1.0, 1.0),
        normalize=("rescale",) * 3,
        patch=(1, 8, 8),
    )
    prepared, _, _ = dataset.prepare_image("c", [tmp_path / "a.png"], own)
    assert np.allclose(prepared[:, 0], colours.transpose(2, 0, 1) / 255)


def test_each_channel_is_scaled_by_its_own_type(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    paths = [tmp_path / f"c_{number:04}.npy" for number in range(2)]
    np.save(paths[0], random.integers(0, 2**8, (1, 9, 9)).astype(np.uint8))
    np.save(paths[1], random.integers(0, 2**16, (1, 9, 9)).astype(np.uint16))
    own = dataclasses.replace(
        OWN, channels=("a", "b"), normalize=("rescale",) * 2, orientation="as-stored", spacing=(1.0, 1.0, 1.0)
    )
    prepared, _, _ = dataset.prepare_image("c", paths, own)
    for channel, path, full in zip(prepared, paths, (2**8 - 1, 2**16 - 1), strict=True):
        assert np.allclose(channel, np.load(path) / full, atol=1e-6)


def test_values_that_a_header_scales_do_not_fill_the_range_of_their_type(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((9, 9, 9))
    image = nibabel.Nifti1Image((1000 * volume).astype(np.int16), made.AFFINE)
    image.header.set_slope_inter(0.001, 0)
    nibabel.save(image, tmp_path / "i.nii.gz")
    own = dataclasses.replace(OWN, normalize=("rescale",))
    prepared, _, _ = dataset.prepare_image("c", [tmp_path / "i.nii.gz"], own)
    assert (prepared.min(), prepared.max()) == (0, 1)


def test_the_background_is_drawn_where_voxels_are_ignored(tmp_path: Path) -> None:
    image, mask = made.volume(0)
    mask[:9][mask[:9] == 0] = 9
    files = made.write(tmp_path / "i.nii.gz", image), made.write(tmp_path / "m.nii.gz", mask)
    own = dataclasses.replace(OWN, ignore_value=9)
    prepared = dataset.prepare(Case("c", files[:1], files[1:]), own)
    places = prepared["voxels"][prepared["voxels"][:, 0] == 0, 1:]
    assert len(places) == dataset.DRAWN
    assert not prepared["mask"][0][tuple(places.T)].any()
    labelled = int((prepared["mask"] == 1).sum())
    assert (prepared["counts"], prepared["foreground"]) == ({"1": labelled}, [labelled])
    made.write(files[1], mask % 9)
    assert set(dataset.prepare(Case("c", files[:1], files[1:]), OWN)["voxels"][:, 0].tolist()) == {1}


def test_resizing_is_that_of_torch() -> None:
    from torch.nn import functional as F

    volume = np.random.default_rng(0).random((2, 9, 6, 5)).astype(np.float32)
    for shape in ((9, 6, 5), (17, 3, 8), (4, 12, 5)):
        wanted = F.interpolate(torch.from_numpy(volume)[None], shape, mode="trilinear", align_corners=False)[0]
        assert np.allclose(resize.image(volume, shape), wanted, atol=1e-6), shape
        nearest = F.interpolate(torch.from_numpy(volume)[None], shape, mode="nearest-exact")[0]
        assert np.array_equal(resize.labels(volume, shape), nearest), shape


def cache_of(root: Path, own: Settings) -> tuple[Path, dict[str, Any], functools.partial[Any]]:
    """A cache of a set: its folder, its manifest without cases, what makes it again."""
    folder, wanted = root.parent / "c", cache.make_manifest(dataset.LAYOUT, {})
    found, prepare = dataset.index(sets.find(root), own), functools.partial(dataset.prepare, settings=own)
    again = functools.partial(cache.build, folder, dataset.LAYOUT, found, prepare)
    again(wanted)
    return folder, wanted, again


@pytest.mark.usefixtures("here")
def test_drawn_voxels_lie_beside_the_manifest(tmp_path: Path) -> None:
    """The manifest of 20,000 cases would not fit into memory with them."""
    own = dataclasses.replace(OWN, classes=("background", "a", "b"), label_values=(0, 1, 2))
    folder, wanted, _ = cache_of(made.nnunet(tmp_path / "set", cases=2, classes=3), own)
    assert (folder / "manifest.json").stat().st_size < 4_000
    cases = cache.open_cache(folder, dataset.LAYOUT, wanted)
    as_facts = []
    for case in cases:
        mask, listed = case.arrays()[1][0], {}
        for number, places in case.voxels().items():
            assert len(places) == min(dataset.DRAWN, np.count_nonzero(mask == int(number)))
            assert (mask[tuple(places.T)] == int(number)).all()
            listed[number] = places.tolist()
        assert set(listed) == {"1", "2"}
        as_facts.append(dataclasses.replace(case, drawn=None, facts={**case.facts, "voxels": listed}))
    one, other = (
        EpochPatches(Volumes(each, "disk", torch.clone), (4, 8, 8), 3, 9, seed=1) for each in (cases, as_facts)
    )
    for number in range(9):
        assert all(torch.equal(one[0, number][key], other[0, number][key]) for key in ("image", "mask", "index"))


@pytest.mark.usefixtures("here")
def test_damage_to_drawn_voxels_is_found(tmp_path: Path) -> None:
    folder, wanted, again = cache_of(made.nnunet(tmp_path / "set", cases=1), OWN)
    (case,) = cache.open_cache(folder, dataset.LAYOUT, wanted)
    assert case.drawn == folder / "case_0_voxels.npy"
    rows = np.load(case.drawn)
    np.save(case.drawn, np.where(rows == rows.max(), 99, rows))
    with pytest.raises(CacheError, match=r"case_0_voxels.npy: is another one than when this command began"):
        case.voxels()
    with pytest.raises(CacheError, match=r"case_0_voxels.npy: its voxels do not lie in an image of \(1, "):
        dataclasses.replace(case, opened=()).voxels()
    with pytest.raises(CacheError, match=r"case_0_voxels.npy has other content than was written"):
        cache.open_cache(folder, dataset.LAYOUT, wanted)
    case.drawn.unlink()
    with pytest.raises(CacheError, match=r"case_0_voxels.npy cannot be read"):
        cache.open_cache(folder, dataset.LAYOUT, wanted)
    assert again(wanted)["made"] == 1
    (case,) = cache.open_cache(folder, dataset.LAYOUT, wanted)
    assert case.voxels().keys() == {"1"}


@pytest.mark.usefixtures("here")
def test_a_cache_with_drawn_voxels_in_its_manifest_is_refused(tmp_path: Path) -> None:
    folder, wanted, again = cache_of(made.nnunet(tmp_path / "set", cases=1), OWN)
    record = read_json(folder / "manifest.json")["cases"]["case_0"]
    del record["arrays"]["voxels"]
    before = cache.make_manifest(dataclasses.replace(dataset.LAYOUT, version=1), {})
    before["cases"] = {"case_0": {**record, "voxels": {"1": [[1, 1, 1]]}}}
    (folder / "manifest.json").write_text(json.dumps(before))
    for work in (again, functools.partial(cache.open_cache, folder, dataset.LAYOUT)):
        with pytest.raises(CacheError, match=rf"version 1 \(now: {dataset.LAYOUT.version}\)") as caught:
            work(wanted)
        assert "--rebuild-cache" in caught.value.hint
    assert again({**wanted, "cases": {}}, rebuild=True)["made"] == 1


def test_a_case_without_labels_has_no_drawn_voxels(tmp_path: Path) -> None:
    image = made.write(tmp_path / "i.nii.gz", made.volume(0)[0])
    mask = made.write(tmp_path / "m.nii.gz", np.zeros((20, 24, 12), np.uint8))
    rows = dataset.prepare(Case("c", (image,), (mask,)), OWN)["voxels"]
    np.save(tmp_path / "c_voxels.npy", rows)
    case = CachedCase("c", image, mask, (1, 4, 4, 4), (0,), drawn=tmp_path / "c_voxels.npy")
    assert (rows.shape, dict(case.voxels())) == ((0, 4), {})
