"""NIfTI files that are damaged, contradict themselves or one another, or hold something else than CT: each is refused
by name, or taken with a notice that says how."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import error_of

from unet.data.cache import cache
from unet.data.io import nifti
from unet.errors import DataError
from unet.tasks.kits19 import dataset as kits19

Run = Callable[..., tuple[int, str, str]]
LPS = np.diag([-1.2, -1.2, 3.0, 1.0])
SHAPE = (40, 36, 20)


def settings(**changed: Any) -> Any:
    usual = {"spacing": (1.6, 1.2, 1.2), "pad_to": (32, 32, 32), "eval_patch": (32, 32, 32), "overlap": 0.5}
    return SimpleNamespace(**usual | {"label_geometry": "header"} | changed)


def scan(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Air, a body with noise, an organ and a tumour in it: HU as int16, labels as uint8."""
    volume = np.full(shape, -1000, np.int16)
    body = tuple(slice(side // 6, side - side // 6) for side in shape)
    volume[body] = np.random.default_rng(seed).normal(40, 25, volume[body].shape)
    label = np.zeros(shape, np.uint8)
    label[10:20, 10:20, 6:12], label[12:15, 12:15, 8:10] = 1, 2
    volume[label > 0] += 90
    return volume, label


def save(path: Path, array: np.ndarray, affine: Any = LPS, edit: Callable[[Any], None] | None = None) -> Path:
    """Write a volume; `edit` changes the header as it goes to the disk, past nibabel's checks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_name("plain.nii")
    nib.Nifti1Image(array, affine).to_filename(plain)
    content = bytearray(plain.read_bytes())
    plain.unlink()
    if edit:
        head = nib.Nifti1Header(bytes(content[:348]), check=False)
        edit(head)
        content[:348] = head.binaryblock
    path.write_bytes(gzip.compress(bytes(content), 1) if path.suffix == ".gz" else content)
    return path


def fields(**changed: Any) -> Callable[[Any], None]:
    def edit(head: Any) -> None:
        for name, value in changed.items():
            head[name] = value

    return edit


def make_set(root: Path, cases: int = 3, image: Any = None, label: Any = None, **how: Any) -> Path:
    """A raw set; `image`, `label`: arguments of `save` in place of the usual ones, by case or for all."""
    for number in range(cases):
        volume, mask = scan(number)
        folder = root / f"case_{number:05d}"
        save(folder / "imaging.nii.gz", **{"array": volume, **(image or {})})
        save(folder / "segmentation.nii.gz", **{"array": mask, **(label or {})})
    return root


def prepared(root: Path, **changed: Any) -> dict[str, Any]:
    return kits19.prepare(kits19.index(root, settings(**changed))[0], settings(**changed))


def refused(work: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        work()
    message, hint = str(caught.value).splitlines()
    assert hint
    return f"{message}\n{hint}"


HEADERS = {
    "vox_offset NaN": ({"vox_offset": np.nan}, "byte nan"),
    "vox_offset negative": ({"vox_offset": -352}, "byte -352"),
    "vox_offset inside of the header": ({"vox_offset": 16}, "byte 16"),
    "vox_offset infinite": ({"vox_offset": np.inf}, "byte inf"),
    "vox_offset huge": ({"vox_offset": 1e30}, "cut short"),
    "vox_offset between bytes": ({"vox_offset": 352.5}, "byte 352.5"),
    "no dimension": ({"dim": [0, 40, 36, 20, 1, 1, 1, 1]}, "0 dimensions"),
    "eight dimensions": ({"dim": [8, 40, 36, 20, 1, 1, 1, 1]}, "8 dimensions"),
    "a side of 0": ({"dim": [3, 40, 0, 20, 1, 1, 1, 1]}, "40 x 0 x 20"),
    "a negative side": ({"dim": [3, 40, -36, 20, 1, 1, 1, 1]}, "40 x -36 x 20"),
    "two frames": ({"dim": [4, 40, 36, 10, 2, 1, 1, 1]}, "40 x 36 x 10 x 2"),
    "a size of terabytes": ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "more than"),
    "more than the file holds": ({"dim": [3, 400, 360, 200, 1, 1, 1, 1]}, "cut short"),
    "less than the file holds": ({"dim": [3, 40, 36, 10, 1, 1, 1, 1]}, "follow the voxels"),
    "another type than the voxels": ({"datatype": 2, "bitpix": 8}, "follow the voxels"),
    "an unknown type": ({"datatype": 777}, "type that NIfTI does not have"),
    "RGB": ({"datatype": 128, "bitpix": 24}, "colours"),
    "complex": ({"datatype": 32, "bitpix": 64}, "complex64"),
    "spacing -1": ({"pixdim": [1, -1, 1.2, 3, 1, 1, 1, 1]}, "-1 x 1.2 x 3 mm"),
    "spacing 1e-6": ({"pixdim": [1, 1e-6, 1e-6, 1e-6, 1, 1, 1, 1]}, "1e-06 x 1e-06 x 1e-06 mm"),
    "spacing 0": ({"pixdim": [1, 1.2, 0, 3, 1, 1, 1, 1]}, "1.2 x 0 x 3 mm"),
    "spacing NaN": ({"pixdim": [1, 1.2, np.nan, 3, 1, 1, 1, 1]}, "1.2 x nan x 3 mm"),
    "slope NaN": ({"scl_slope": np.nan, "scl_inter": 0}, "by nan and 0"),
    "slope infinite": ({"scl_slope": np.inf, "scl_inter": 0}, "by inf and 0"),
    "slope 0 with an intercept": ({"scl_slope": 0, "scl_inter": -1024}, "by 0 and -1024"),
    "intercept NaN": ({"scl_slope": 1, "scl_inter": np.nan}, "by 1 and nan"),
    "no magic": ({"magic": b"ni1"}, "half of a .hdr/.img pair"),
    "no header": ({"sizeof_hdr": 1234}, "tells of 1234 bytes; one of 348 or 540 bytes is expected"),
    "an affine of zeros": ({"srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4}, "maps the grid to no volume"),
    "an affine of NaN": ({"srow_x": [np.nan] * 4}, "maps the grid to no volume"),
    "a quaternion longer than 1": ({"sform_code": 0, "qform_code": 1, "quatern_b": 7}, "cannot be read"),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_headers_that_cannot_be(suffix: str, tmp_path: Path) -> None:
    for name, (changed, words) in HEADERS.items():
        path = save(tmp_path / f"a{suffix}", scan()[0], edit=fields(**changed))
        message = refused(lambda path=path: nifti.read_image(path))  # type: ignore[misc]
        assert str(path) in message and words in message, (name, message)


def test_headers_of_other_programs_are_read(tmp_path: Path) -> None:
    """Scaling that is not set, in each of its forms; a quaternion with a qfac of 0; one frame; both byte orders."""
    volume, _ = scan()
    for changed in (
        {"scl_slope": 0, "scl_inter": 0},
        {"scl_slope": np.nan, "scl_inter": np.nan},
        {"vox_offset": 0},
        {"dim": [4, *SHAPE, 1, 1, 1, 1]},
        {"dim": [5, *SHAPE, 1, 1, 1, 1]},
        {"sform_code": 0, "qform_code": 1, "pixdim": [0, 1.2, 1.2, 3, 1, 1, 1, 1]},
    ):
        path = save(tmp_path / "a.nii.gz", volume, edit=fields(**changed))
        assert np.array_equal(nifti.read_image(path), volume), changed
    head = nib.Nifti1Header(endianness=">")
    head.set_data_dtype(np.int16)
    nib.Nifti1Image(volume.astype(">i2"), LPS, head).to_filename(tmp_path / "b.nii.gz")
    assert np.array_equal(nifti.read_image(tmp_path / "b.nii.gz"), volume)
    assert nifti.read_header(tmp_path / "b.nii.gz").dtype == np.dtype(">i2")


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    for name, make, words in (
        ("pipe.nii.gz", os.mkfifo, "a pipe"),
        ("loop.nii.gz", lambda path: path.symlink_to(path), "symbolic links"),
        ("gone.nii.gz", lambda path: path.symlink_to(path.with_name("none")), "No such file"),
        ("empty.nii.gz", Path.touch, "it has 0 bytes"),
    ):
        path = tmp_path / name
        make(path)  # type: ignore[operator]
        message = refused(lambda path=path: nifti.read_header(path))  # type: ignore[misc]
        assert name in message and words in message, message
        root = make_set(tmp_path / f"set-{name}", 2)
        (root / "case_00001" / "imaging.nii.gz").unlink()
        path.rename(root / "case_00001" / "imaging.nii.gz")
        if name.startswith("loop"):
            (root / "case_00001" / "imaging.nii.gz").unlink()
            (root / "case_00001" / "imaging.nii.gz").symlink_to("imaging.nii.gz")
        message = refused(lambda root=root: kits19.index(root, settings()))  # type: ignore[misc]
        assert "case_00001/imaging.nii.gz" in message and words in message
        if not name.startswith("empty"):
            assert words in refused(lambda root=root: kits19.inputs([root]))  # type: ignore[misc]
    (tmp_path / "folder.nii.gz").mkdir()
    assert "holds no NIfTI cases" in refused(lambda: kits19.inputs([tmp_path / "folder.nii.gz"]))
    assert "is a folder" in refused(lambda: nifti.read_header(tmp_path / "folder.nii.gz"))


def test_a_gzip_name_without_an_end_does_not_take_minutes(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 30_000_000)
    assert str(path) in refused(lambda: nifti.read_header(path))


def test_a_volume_larger_than_the_memory(tmp_path: Path) -> None:
    """By its header, before memory is taken."""
    head = nib.Nifti1Header()
    head.set_data_dtype(np.uint8)
    head.set_data_shape((1280, 1280, 1280))
    head.set_sform(np.diag([-1.2, -1.2, 1.6, 1]), 2)
    head.set_zooms((1.2, 1.2, 1.6))
    head["vox_offset"] = 352
    path = tmp_path / "a.nii"
    with open(path, "wb") as stream:
        stream.write(head.binaryblock)
        stream.truncate(352 + 1280**3)  # a hole of 2 GB: it takes no room
    how = kits19.grids.geometry(nifti.read_header(path), (1.6, 1.2, 1.2), (32, 32, 32))
    kits19.require_memory(nifti.read_header(path), how, 1)
    message = refused(lambda: kits19.require_memory(nifti.read_header(path), how, 2**60))
    assert "become 1280 x 1280 x 1280, which takes 1152921.5 TB of memory" in message
    if kits19.host.memory()[0] < 20 * 1280**3:
        assert "of memory; this machine has" in refused(lambda: kits19.prepare_image(path, settings()))


def test_a_volume_below_one_voxel(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", scan()[0], np.diag([-0.02, -0.02, 0.02, 1]))
    assert "less than one voxel" in refused(lambda: kits19.prepare_image(path, settings()))


# A scan and its label ---------------------------------------------------------------------------------------------


def moved(shift: Any = (0, 0, 0), scale: Any = (1, 1, 1), turn: float = 0.0) -> np.ndarray:
    affine = LPS.copy()
    affine[:3, :3] *= scale
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine = rotation @ affine
    affine[:3, 3] += shift
    return affine


CONTRADICTIONS = {
    "an identity affine": {"affine": np.eye(4)},
    "another origin": {"affine": moved((5, 0, 0))},
    "an origin one voxel off": {"affine": moved((0, 0, 3))},
    "an origin half a voxel off": {"affine": moved((0.6, 0, 0))},
    "another spacing": {"affine": moved(scale=(1, 1, 1.1))},
    "another direction": {"affine": LPS * np.array([-1, 1, 1, 1])},
    "a rotation": {"affine": moved(turn=0.1)},
    "no orientation": {"edit": fields(sform_code=0, qform_code=0)},
    "metres": {"edit": fields(xyzt_units=1)},
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_label_that_contradicts_its_scan_is_refused_or_taken_as_stored(name: str, tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", 1, label=CONTRADICTIONS[name])
    message = refused(lambda: kits19.index(root, settings()))
    assert "case_00000" in message and ("--label-geometry as-stored" in message or name == "metres"), message
    usual = prepared(make_set(tmp_path / "usual", 1))
    found = prepared(root, label_geometry="as-stored")
    assert np.array_equal(found["mask"], usual["mask"]) and np.array_equal(found["image"], usual["image"])
    case = kits19.index(root, settings(label_geometry="as-stored"))[0]
    truth, _ = kits19.truth(case, settings(label_geometry="as-stored"))
    assert np.count_nonzero(truth) == np.count_nonzero(scan()[1])


def test_the_other_way_round_and_two_without_orientation(tmp_path: Path) -> None:
    none = {"edit": fields(sform_code=0, qform_code=0)}
    assert "only one of them names an orientation" in refused(
        lambda: kits19.index(make_set(tmp_path / "a", 1, image=none), settings())
    )
    assert len(kits19.index(make_set(tmp_path / "b", 1, image=none, label=none), settings())) == 1
    other = {"affine": moved(scale=(1, 1, 1.5)), **none}
    assert "4.5 mm" in refused(lambda: kits19.index(make_set(tmp_path / "c", 1, image=none, label=other), settings()))


def test_headers_that_agree_but_for_rounding_form_and_order(tmp_path: Path) -> None:
    """Up to a quarter of a voxel at the corners; qform or sform or both; axes in another order."""
    volume, mask = scan()
    usual = prepared(make_set(tmp_path / "usual", 1))
    turned = nib.as_closest_canonical(nib.Nifti1Image(mask, LPS))
    swapped = nib.Nifti1Image(mask, LPS).as_reoriented(np.array([[2, 1], [0, -1], [1, 1]]))
    qform = nib.Nifti1Header()
    qform.set_qform(LPS, 1)
    names = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "pixdim")
    only = {name: qform[name] for name in names} | {"sform_code": 0, "qform_code": 1}
    for number, label in enumerate(
        (
            {"affine": moved((0.1, 0.1, 0.2))},
            {"affine": moved(scale=(1.00001, 1, 0.9999))},
            {"affine": LPS, "edit": fields(sform_code=1)},
            {"array": np.asarray(turned.dataobj), "affine": turned.affine},
            {"array": np.asarray(swapped.dataobj), "affine": swapped.affine},
            {"edit": fields(**only)},
            {"edit": fields(**only | {"sform_code": 4})},
        )
    ):
        found = prepared(make_set(tmp_path / str(number), 1, label=label))
        assert np.array_equal(found["mask"], usual["mask"]), number
    found = prepared(make_set(tmp_path / "q", 1, image={"edit": fields(**only)}))
    assert np.array_equal(found["image"], usual["image"])
    assert np.array_equal(volume.shape, SHAPE)


def unit_sform(head: Any) -> None:
    head.set_qform(LPS, 1)
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        head[name] = np.sign(LPS[row])
    head["sform_code"] = 2


def test_a_sform_without_scale_gives_way_to_the_qform(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = prepared(make_set(tmp_path / "usual", 1))
    capsys.readouterr()
    found = prepared(make_set(tmp_path / "set", 3, image={"edit": unit_sform}, label={"edit": unit_sform}))
    assert np.array_equal(found["mask"], usual["mask"]) and np.array_equal(found["image"], usual["image"])
    told = capsys.readouterr().err
    assert told.count("the spacing of its qform is taken (3 cases are like that)") == 2  # scans, labels

    def other(head: Any) -> None:
        unit_sform(head)
        head["srow_x"] = [1, 0, 0, 0]

    def alone(head: Any) -> None:
        unit_sform(head)
        head["qform_code"] = 0

    assert "its sform names the axes R, P, S, its qform L, P, S" in refused(
        lambda: nifti.read_header(save(tmp_path / "a.nii.gz", scan()[0], edit=other))
    )
    assert "one of them is wrong" in refused(
        lambda: nifti.read_header(save(tmp_path / "b.nii.gz", scan()[0], edit=alone))
    )


def test_a_sform_and_a_qform_of_two_directions_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def edit(head: Any) -> None:
        head.set_qform(np.diag([1.2, -1.2, 3, 1]), 1)

    path = save(tmp_path / "a.nii.gz", scan()[0], edit=edit)
    kits19.prepare_image(path, settings())
    assert "its sform names the axes L, P, S, its qform R, P, S; the sform is taken" in capsys.readouterr().err


def test_masks_have_the_header_of_their_scan(tmp_path: Path) -> None:
    """What is predicted is taken back as the label of its scan, whatever its header says."""
    volume, mask = scan()
    for number, how in enumerate(
        (
            {},
            {"edit": unit_sform},
            {"edit": fields(sform_code=0, qform_code=0)},
            {"edit": fields(dim=[4, *SHAPE, 1, 1, 1, 1])},
            {"affine": moved((3, 4, 5), turn=0.2)},
        )
    ):
        folder = tmp_path / str(number) / "case_00000"
        image = save(folder / "imaging.nii.gz", volume, **how)
        nifti.write_like(folder / "segmentation.nii.gz", mask, image)
        assert len(kits19.index(folder.parent, settings())) == 1, number


# Values -----------------------------------------------------------------------------------------------------------


def mri(level: float, background: float | None) -> np.ndarray:
    volume, _ = scan()
    values = np.random.default_rng(1).normal(level, level / 15, volume.shape)
    return (values if background is None else np.where(volume > -900, values, background)).astype(np.int16)


STRANGE = {
    "MRI about 1,200": mri(1200, None),
    "MRI about 1,200 on 0": mri(1200, 0),
    "MRI about 1,200 on -1000": mri(1200, -1000),
    "an offset of 1024": scan()[0] + np.int16(1024),
    "an offset of 1024, the air with noise": (scan()[0] + np.random.default_rng(2).rayleigh(30, SHAPE) + 1024),
    "an offset of 1024, a small body": np.where(np.mgrid[:40, :36, :20][0] < 16, scan()[0], -1000) + 1024.0,
    "MRI about 1,200 on noise": mri(1200, None) * (scan()[0] > -900) + np.random.default_rng(2).rayleigh(20, SHAPE),
    "a scale of 0 to 1": ((scan()[0] + 1000) / 1400).astype(np.float32),
    "zeros": np.zeros(SHAPE, np.int16),
    "air": np.full(SHAPE, -1000, np.int16),
    "one bright voxel": np.where(np.arange(np.prod(SHAPE)).reshape(SHAPE) == 9, 900, 0).astype(np.int16),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_no_ct_is_refused(name: str, tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", 1, image={"array": STRANGE[name]})
    for work in (lambda: prepared(root), lambda: kits19.prepare_image(root / "case_00000/imaging.nii.gz", settings())):
        message = refused(work)
        assert "case_00000/imaging.nii.gz: is no CT in Hounsfield units" in message, message


def test_ct_is_taken_whatever_its_share_of_air(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume, _ = scan()
    wide = np.full((120, 108, 20), -1000, np.int16)
    wide[40:80, 36:72] = volume  # a tenth of the volume
    values = np.random.default_rng(0)
    plain, fov = values.normal(50, 15, SHAPE), np.hypot(*np.mgrid[-1:1:40j, -1:1:36j])[..., None] < 1
    kept = [np.where(scan()[1] > 1, volume, outside) for outside in (-1024, -3024)]  # 0.1 % of the voxels
    contrast = np.where(scan()[1] > 0, 420, plain)  # no air; and 60 % of it aorta
    aorta = np.where(np.arange(20) < 9, 380, plain)
    metal = np.where(scan()[1] > 0, 3071, volume)
    outer = [np.where(fov, volume, outside) for outside in (-1024, -3024, 0)]
    for array in (*kept, contrast, aorta, metal, *outer):
        kits19.prepare_image(save(tmp_path / "a.nii.gz", np.asarray(array, np.float32)), settings())
    capsys.readouterr()
    for array in (wide, values.integers(-1024, 3072, SHAPE, np.int16), volume.clip(-79, 304)):
        kits19.prepare_image(save(tmp_path / "a.nii.gz", array), settings())
    assert capsys.readouterr().err.count("no CT in Hounsfield units (air is -1000)") == 1  # the last: -79 to 304


def test_nan_outside_of_the_body_becomes_air(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume, mask = scan()
    outside = volume == -1000
    holes, same = np.where(outside, np.nan, volume).astype(np.float32), volume.astype(np.float32)
    usual = prepared(make_set(tmp_path / "usual", 1, image={"array": same}))
    capsys.readouterr()
    blank = np.where(outside, np.nan, mask).astype(np.float32)
    root = make_set(tmp_path / "set", 1, image={"array": holes}, label={"array": blank})
    found = prepared(root)
    assert np.array_equal(found["image"], usual["image"]) and np.array_equal(found["mask"], usual["mask"])
    words = [words for _, words in found["remarks"]]
    assert len(words) == 2
    assert f"{outside.sum()} voxels are NaN; they are taken as background (-1000)" in words[0]
    kits19.prepare_image(root / "case_00000" / "imaging.nii.gz", settings())
    assert capsys.readouterr().err.count("voxels are NaN") == 1
    holes[20, 18, 10] = np.inf
    path = save(tmp_path / "inf.nii.gz", holes)
    assert "1 voxels or more are NaN or infinite" in refused(lambda: kits19.prepare_image(path, settings()))
    inner = volume.astype(np.float32)
    inner[20, 18, 8:12] = np.nan
    path = save(tmp_path / "inner.nii.gz", inner)
    assert "4 voxels or more are NaN or infinite" in refused(lambda: kits19.prepare_image(path, settings()))


def test_labels_that_are_nearly_whole(tmp_path: Path) -> None:
    _, mask = scan()
    for number, (kind, factor) in enumerate(
        ((np.int16, 1.0), (np.uint8, 1.0), (np.int8, 1.0), (np.float32, 1.0000001), (np.float64, 0.99999))
    ):
        image = nib.Nifti1Image(mask.astype(np.float32) * np.float32(factor), LPS)
        image.set_data_dtype(kind)
        path = tmp_path / f"{number}.nii.gz"
        image.to_filename(path)
        assert np.array_equal(nifti.read_label(path), mask), kind
    for number, (array, words) in enumerate(
        (
            (np.where(mask == 2, 0.5, mask).astype(np.float32), "holds labels 0.5;"),
            (np.where(mask == 2, 1.002, mask).astype(np.float32), "holds labels 1.002;"),
            (np.where(mask == 2, 3, mask).astype(np.int16), "holds labels 3;"),
            (np.where(mask == 2, 255, mask).astype(np.uint8), "holds labels 255;"),
            (-mask.astype(np.int8), "holds labels -2, -1;"),
        )
    ):
        path = save(tmp_path / f"wrong-{number}.nii.gz", array)
        assert words in refused(lambda path=path: nifti.read_label(path))  # type: ignore[misc]
    path = save(tmp_path / "scaled.nii.gz", mask, edit=fields(scl_slope=0.5))
    assert "scaled by 0.5" in refused(lambda: nifti.read_label(path))


# Sets and the command line ----------------------------------------------------------------------------------------


def test_channel_files_are_one_case(tmp_path: Path) -> None:
    volume, mask = scan()
    ts = tmp_path / "ts"
    for name in ("p_010_0000", "p_010_0001", "p_011_0000"):
        save(ts / f"{name}.nii.gz", volume)
    words = "1 of 2 cases have several channels, 2 files in all (p_010: p_010_0000.nii.gz, p_010_0001.nii.gz)"
    both = [ts / "p_010_0001.nii.gz", ts / "p_010_0000.nii.gz"]
    message = refused(lambda: kits19.inputs([ts]))
    assert words in message and "ts/*_0000.nii.gz" in message
    assert "1 of 1 cases have several channels" in refused(lambda: kits19.inputs(both))
    assert list(kits19.inputs([ts / "p_010_0000.nii.gz", ts / "p_011_0000.nii.gz"])) == ["p_010", "p_011"]
    both[0].unlink()
    assert list(kits19.inputs([ts])) == ["p_010", "p_011"]
    root = tmp_path / "nnunet"
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        save(root / "imagesTr" / f"{name}.nii.gz", volume)
        save(root / "labelsTr" / f"{name[0]}.nii.gz", mask)
    assert "2 of 2 cases have several channels, 4 files" in refused(lambda: kits19.index(root, settings()))
    for name in ("a_0001", "b_0001"):
        (root / "imagesTr" / f"{name}.nii.gz").unlink()
    assert [case.id for case in kits19.index(root, settings())] == ["a", "b"]


def test_numbers_that_are_names_are_no_channels(tmp_path: Path) -> None:
    volume, mask = scan()
    for number in range(3):
        save(tmp_path / "set" / "images" / f"img_{number:04d}.nii.gz", volume)
        save(tmp_path / "set" / "labels" / f"img_{number:04d}.nii.gz", mask)
        save(tmp_path / "ts" / f"img_{number + 1:04d}.nii.gz", volume)
    names = [f"img_{number:04d}" for number in range(3)]
    assert [case.id for case in kits19.index(tmp_path / "set", settings())] == names
    assert list(kits19.inputs([tmp_path / "set"])) == names
    assert list(kits19.inputs([tmp_path / "ts"])) == [f"img_{number:04d}" for number in (1, 2, 3)]


def test_labels_of_a_set_that_cannot_be_right(here: None, tmp_path: Path) -> None:
    from unet.tasks.kits19 import check as checks_kits19

    def first(ids: list[str]) -> dict[str, list[str]]:
        return {"train": ids[1:], "validation": ids[:1]}

    inverted = make_set(tmp_path / "a", 2, label={"array": (scan()[1] == 0).astype(np.uint8)})
    assert any("kidney (label 1) fills 9" in item for item in checks_kits19.raw(inverted, first).warnings)
    empty = make_set(tmp_path / "b", 2, label={"array": np.zeros(SHAPE, np.uint8)})
    report = checks_kits19.raw(empty, first)
    assert any("no label of the 2 cases holds kidney or tumour" in item for item in report.warnings)


def test_names_that_no_cache_can_have(tmp_path: Path) -> None:
    for name in ("case\n1", "case\udcff", "a\\b"):
        root = make_set(tmp_path / str(len(list(tmp_path.iterdir()))), 2)
        (root / "case_00001").rename(root / name)
        assert f"{name!r} in " in refused(lambda root=root: kits19.index(root, settings()))  # type: ignore[misc]


KITS = ("--task", "kits19", "--pad-to", 32)


def test_the_command_line_names_case_and_mend(here: None, cli: Run, workplace: Path) -> None:
    make_set(workplace / "set", 3, label={"affine": np.eye(4)})
    message = error_of(cli("preprocess", *KITS, "--data", "./set", "--cache", "./c"))
    assert "case_00000" in message and "type --label-geometry as-stored" in message
    words = ("--data", "./set", "--cache", "./c", "--label-geometry", "as-stored")
    assert cli("preprocess", *KITS, *words)[0] == 0
    assert cli("check", *KITS, *words[:2], *words[4:])[0] == 0
    code, out, _ = cli("check", *KITS, *words[:2])
    assert code == 1 and "their corners are up to" in out
    make_set(workplace / "set", 3)
    assert "label_geometry as-stored" in error_of(cli("preprocess", *KITS, "--data", "./set", "--cache", "./c"))
    make_set(workplace / "mri", 3, image={"array": mri(1200, 0)})
    message = error_of(cli("preprocess", *KITS, "--data", "./mri", "--cache", "./d"))
    assert "case_00000/imaging.nii.gz: is no CT in Hounsfield units" in message
    make_set(workplace / "inverted", 3, label={"array": (scan()[1] == 0).astype(np.uint8)})
    code, _, err = cli("preprocess", *KITS, "--data", "./inverted", "--cache", "./e")
    assert code == 0 and err.count("kidney (label 1) fills") == 1
    make_set(workplace / "empty", 3, label={"array": np.zeros(SHAPE, np.uint8)})
    words = (
        "--data",
        "./empty",
        "--cache",
        "./f",
        "--split",
        "last",
        "--patch",
        16,
        "--eval-patch",
        32,
        "--device",
        "cpu",
    )
    result = cli("train", *KITS, *words, "--layers", 2, "--width", 4, "--batch-size", 1, "--max-steps", 1)
    assert "every voxel is background" in result[2]
    assert "None of the 2 training cases holds kidney or tumour" in error_of(result)


def test_notices_are_one_a_kind(here: None, cli: Run, workplace: Path) -> None:
    volume, _ = scan()
    holes = np.where(volume == -1000, np.nan, volume).astype(np.float32)
    make_set(workplace / "set", 3, image={"array": holes})
    code, _, err = cli("preprocess", *KITS, "--data", "./set", "--cache", "./c")
    assert code == 0 and err.count("voxels are NaN") == 1 and "(3 cases are like that)" in err
    assert len(cache.read_manifest(workplace / "c", kits19.LAYOUT)["cases"]["case_00000"]["remarks"]) == 1  # type: ignore[index]
