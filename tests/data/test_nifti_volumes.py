"""One volume of a NIfTI file that holds several, in both formats, packed or not."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from unet.data.io import nifti
from unet.data.io.nifti_header import raw_header, volumes_of
from unet.errors import DataError

AFFINE = np.diag([-2.0, 2.0, 2.2, 1.0])


def volumes(shape: tuple[int, ...] = (12, 10, 7, 3)) -> np.ndarray:
    return np.random.default_rng(1).integers(1, 1000, shape).astype(np.int16)


def save(path: Path, array: np.ndarray, kind: type = nib.Nifti1Image) -> Path:
    kind(array, AFFINE).to_filename(path)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_each_volume_is_read(kind: type, suffix: str, tmp_path: Path) -> None:
    for shape in ((12, 10, 7, 3), (12, 10, 7, 1, 3), (12, 10, 7, 2, 2)):
        array = volumes(shape)
        path = save(tmp_path / f"a{suffix}", array, kind)
        flat = array.reshape(*shape[:3], -1, order="F")
        assert volumes_of(raw_header(path)) == flat.shape[3]
        for number in range(flat.shape[3]):
            head = nifti.read_header(path, volume=number)
            assert head.shape == shape[:3] and np.array_equal(nifti.read_volume(head), flat[..., number])


def test_a_volume_that_is_not_there_is_refused_with_the_range(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", volumes())
    for number in (3, -1):
        with pytest.raises(DataError, match=rf"has no volume {number}; it is 12 x 10 x 7 x 3: volumes 0 to 2"):
            nifti.read_header(path, volume=number)
    with pytest.raises(DataError, match="12 x 10 x 7 x 3; one volume of three dimensions is expected"):
        nifti.read_header(path)
    one = save(tmp_path / "b.nii.gz", volumes()[..., 0])
    assert np.array_equal(nifti.read_volume(nifti.read_header(one, volume=0)), volumes()[..., 0])
    with pytest.raises(DataError, match="has no volume 1; it holds one"):
        nifti.read_header(one, volume=1)


def test_a_file_that_ends_in_a_later_volume_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", volumes())
    whole = path.read_bytes()
    for content in (whole[:-100], gzip.compress(whole)[:-100]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cut short"):
            nifti.read_volume(nifti.read_header(path, volume=0))


def test_an_output_is_written_on_the_grid_of_one_volume(tmp_path: Path) -> None:
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        like = save(tmp_path / "a.nii.gz", volumes(), kind)
        array = np.random.default_rng(2).normal(size=(12, 10, 7)).astype(np.float32)
        nifti.write_like(tmp_path / "b.nii.gz", array, like)
        found = nib.load(tmp_path / "b.nii.gz")
        assert found.shape == (12, 10, 7) and np.array_equal(np.asarray(found.dataobj), array)
        assert np.array_equal(found.affine, nib.load(like).affine)


def test_nan_may_be_left_to_the_caller(tmp_path: Path) -> None:
    array = volumes()[..., 0].astype(np.float32)
    array[0] = np.nan
    path = save(tmp_path / "a.nii.gz", array)
    head = nifti.read_header(path)
    assert np.array_equal(nifti.read_volume(head, None), array, equal_nan=True) and not head.notes
    assert (nifti.read_volume(head, 5.0)[0] == 5).all() and "taken as background (5)" in head.notes[0]


@pytest.mark.real
@pytest.mark.parametrize("name", ["example4d", "example_nifti2", "nibabel_anatomical_bigendian", "someones_anatomy"])
def test_corner_cases_are_read_as_nibabel_reads_them(name: str, real_data: Path) -> None:
    (path,) = (real_data / "brains" / "edge").glob(f"{name}.nii*")
    image = nib.load(path)
    wanted = image.get_fdata()
    wanted = wanted[..., None] if wanted.ndim == 3 else wanted
    for number in range(wanted.shape[3]):
        head = nifti.read_header(path, volume=number)
        assert np.allclose(head.affine, image.affine, atol=1e-6) and head.codes == nib.aff2axcodes(image.affine)
        assert np.allclose(nifti.read_volume(head), wanted[..., number], rtol=1e-6)
