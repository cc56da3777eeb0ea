"""Every format that a user's own data may have: read with its grid, its channels and its labels told apart."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image
from test_images import png_of

from unet.config import check_paths
from unet.data.io import itk, volumes
from unet.data.io.arrays import write_stack
from unet.errors import DataError

RANDOM = np.random.default_rng(0)
VOLUME = RANDOM.integers(0, 4000, (5, 6, 7)).astype(np.uint16)  # (x, y, z)
LABELS = RANDOM.integers(0, 4, (5, 6, 7)).astype(np.uint8)
OBLIQUE = np.array([[0, -0.768, -0.7, 4], [0.7, 0, 0, -5], [0, 0.224, -2.4, 6], [0, 0, 0, 1]])


def nifti(path: Path, array: Any, affine: Any = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([0.7, 0.8, 2.5, 1]) if affine is None else affine), path)
    return path


def nrrd(path: Path, array: Any, spacing: Any = (0.7, 0.8, 2.5), direction: Any = None) -> Path:
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(spacing)
    if direction is not None:
        image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    return path


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii.gz", "a.nii"])
def test_a_volume_with_a_place_in_space(name: str, tmp_path: Path) -> None:
    path = (nifti if ".nii" in name else nrrd)(tmp_path / name, VOLUME.astype(np.int16))
    head = volumes.read_head(path)
    assert (head.stored, head.channels, head.flat) == ((5, 6, 7), 1, False)
    assert head.spacing == pytest.approx((0.7, 0.8, 2.5))
    assert head.codes == (("R", "A", "S") if ".nii" in name else ("L", "P", "S"))
    image = volumes.read_image(head)
    assert image.dtype == np.float32
    assert np.array_equal(image[0], VOLUME)
    turn = head.turn("IPL")
    turned = turn.apply(image)
    assert turned.shape == (1, 7, 6, 5)
    assert np.array_equal(turn.undo(turned), image)


def test_copies_of_a_volume_in_two_formats_are_the_same_when_turned(tmp_path: Path) -> None:
    one = nifti(tmp_path / "a.nii.gz", VOLUME.astype(np.int16), OBLIQUE)
    stored = SimpleITK.ReadImage(str(one))
    SimpleITK.WriteImage(SimpleITK.PermuteAxes(stored, [2, 0, 1]), str(tmp_path / "b.nrrd"))
    heads = [volumes.read_head(path) for path in (one, tmp_path / "b.nrrd")]
    a, b = (head.turn("IPL").apply(volumes.read_image(head)) for head in heads)
    assert np.array_equal(a, b)
    assert volumes.mismatch(*heads) == []


def test_what_differs_between_two_grids_is_named(tmp_path: Path) -> None:
    image = volumes.read_head(nifti(tmp_path / "image.nii.gz", VOLUME.astype(np.int16)))

    def words(array: Any = LABELS, affine: Any = None) -> str:
        return "; ".join(volumes.mismatch(image, volumes.read_head(nifti(tmp_path / "m.nii.gz", array, affine))))

    assert words() == ""
    assert words(LABELS[:, :5]) == "size 5 x 6 x 7 and 5 x 5 x 7"
    assert words(affine=np.diag([0.7, 0.8, 2, 1])) == "spacing 0.7 x 0.8 x 2.5 and 0.7 x 0.8 x 2 mm"
    moved = np.diag([0.7, 0.8, 2.5, 1])
    moved[2, 3] = 3
    assert words(affine=moved) == "origin 0 0 0 and 0 0 3 mm"
    moved[2, 3] = 0.01
    assert words(affine=moved) == ""  # a rounded header
    turned = np.diag([0.7, 0.8, 2.5, 1])
    turned[:2, :2] = [[0.7 * 0.96, -0.8 * 0.28], [0.7 * 0.28, 0.8 * 0.96]]
    assert words(affine=turned).startswith("direction")
    flipped = nibabel.Nifti1Image(LABELS, np.diag([0.7, 0.8, 2.5, 1])).as_reoriented(
        nibabel.orientations.axcodes2ornt("LAS")
    )
    nibabel.save(flipped, tmp_path / "f.nii.gz")
    assert volumes.mismatch(image, volumes.read_head(tmp_path / "f.nii.gz")) == []  # the same place, stored backwards
    flat = tmp_path / "x.npy"
    np.save(flat, LABELS)
    assert volumes.mismatch(image, volumes.read_head(flat)) == ["size 7 x 6 x 5 and 5 x 6 x 7"]


@pytest.mark.parametrize(
    ("array", "axes", "stored", "channels"),
    [
        ((6, 7), "YX", (1, 6, 7), 1),
        ((4, 6, 7), "ZYX", (4, 6, 7), 1),
        ((4, 2, 6, 7), "ZCYX", (4, 6, 7), 2),
        ((3, 6, 7), "CYX", (1, 6, 7), 3),
        ((4, 6, 7, 3), "ZYXS", (4, 6, 7), 3),
    ],
)
def test_slices_and_channels_of_a_tiff(
    array: tuple[int, ...], axes: str, stored: tuple[int, ...], channels: int, tmp_path: Path
) -> None:
    values = RANDOM.integers(0, 200, array).astype(np.uint8 if "S" in axes else np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata={"axes": axes})
    head = volumes.read_head(tmp_path / "a.tif")
    assert (head.stored, head.channels, head.codes) == (stored, channels, None)
    order = [axes.replace("S", "C").find(letter) for letter in "CZYX"]
    wanted = values.transpose([place for place in order if place >= 0]).reshape(channels, *stored)
    assert np.array_equal(volumes.read_image(head), wanted)


@pytest.mark.parametrize("kind", ["nnunet", "imagej"])
def test_the_mask_of_a_tiff_has_the_voxels_of_its_image(kind: str, tmp_path: Path) -> None:
    """nnU-Net's Tiff3DIO reads CASE.json beside CASE_0000.tif; ImageJ has the pixels and the spacing in the file."""
    image, mask = tmp_path / "case_0000.tif", tmp_path / "case.tif"
    values = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    if kind == "nnunet":
        tifffile.imwrite(image, values)
        assert volumes.read_head(image).spacing is None
        (tmp_path / "case.json").write_text('{"spacing": [5, 0.4882810115814209, 0.3]}')
        expected = 5, 0.4882810115814209, 0.3
        assert volumes.files_of(image) == [image, tmp_path / "case.json"]
    else:
        about = {"axes": "ZYX", "unit": "\\u00B5m", "spacing": 2}
        tifffile.imwrite(image, values, imagej=True, resolution=((2, 1), (1, 2)), metadata=about)
        expected = 0.002, 0.002, 0.0005
    assert volumes.read_head(image).spacing == pytest.approx(expected, rel=1e-9)
    volumes.write_labels(mask, (values % 3).astype(np.uint8), image, {"class_1": "organ"})
    (tmp_path / "case.json").unlink(missing_ok=True)
    head = volumes.read_head(mask)
    assert head.spacing == pytest.approx(expected, rel=1e-9)
    assert np.array_equal(volumes.read_labels(head), values % 3)
    (tmp_path / "case.json").write_text('{"spacing": [5, 0]}')
    with pytest.raises(DataError, match=r"spacing is \[5, 0\], not three lengths"):
        volumes.read_head(image)
    (tmp_path / "case.json").write_text('{"shapes": []}')  # of another program
    assert volumes.files_of(mask) == [mask]


def test_a_damaged_header_of_npy_is_a_fault_of_the_file(tmp_path: Path) -> None:
    """numpy raises tokenize.TokenError and SyntaxError for them."""
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), np.float32))
    content = (tmp_path / "a.npy").read_bytes()
    for place in range(10, 80):
        for byte in (b"(", b"'", b"\n", b"\x00"):
            (tmp_path / "b.npy").write_bytes(content[:place] + byte + content[place + 1 :])
            with contextlib.suppress(DataError):
                volumes.read_head(tmp_path / "b.npy")


def test_a_tiff_of_imagej_has_a_spacing_and_dots_per_inch_are_none(tmp_path: Path) -> None:
    values = np.zeros((4, 6, 7), np.uint16)
    about = {"axes": "ZYX", "unit": "um", "spacing": 2.0}
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, resolution=(4.0, 2.0), metadata=about)
    assert volumes.read_head(tmp_path / "a.tif").spacing == pytest.approx((0.002, 0.0005, 0.00025))
    for unit in ("INCH", "CENTIMETER"):
        tifffile.imwrite(tmp_path / "b.tif", values[0], resolution=(72, 72), resolutionunit=unit)
        assert volumes.read_head(tmp_path / "b.tif").spacing is None
    for unit in ("µm", "μm", "micron"):
        write_stack(tmp_path / "c.tif", values, (4, 2), unit)
        assert volumes.read_head(tmp_path / "c.tif").spacing == pytest.approx((0.0005, 0.0005, 0.00025))


def test_pictures_and_arrays(tmp_path: Path) -> None:
    colours = RANDOM.integers(0, 255, (6, 7, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    Image.fromarray(colours[..., 0]).save(tmp_path / "b.JPG", "JPEG")
    deep = RANDOM.integers(0, 60000, (6, 7)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "c.png")
    np.save(tmp_path / "d.npy", RANDOM.random((2, 4, 6, 7)))
    found = {path.name: volumes.read_head(path) for path in sorted(tmp_path.iterdir())}
    shapes = {name: (head.stored, head.channels) for name, head in found.items()}
    assert shapes == {
        "a.png": ((1, 6, 7), 3),
        "b.JPG": ((1, 6, 7), 1),
        "c.png": ((1, 6, 7), 1),
        "d.npy": ((4, 6, 7), 2),
    }
    assert found["a.png"].flat
    assert np.array_equal(volumes.read_image(found["a.png"])[:, 0], colours.transpose(2, 0, 1))
    assert np.array_equal(volumes.read_image(found["c.png"])[0, 0], deep)
    assert np.array_equal(volumes.read_labels(found["c.png"])[0], deep)


def test_a_mask_with_a_palette_holds_the_numbers_of_its_colours(tmp_path: Path) -> None:
    numbers = (np.arange(42).reshape(6, 7) % 3).astype(np.uint8)
    picture = Image.fromarray(numbers, "P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(tmp_path / "a.png")
    assert np.array_equal(volumes.read_labels(volumes.read_head(tmp_path / "a.png"))[0], numbers)
    colours = np.stack([128 * (numbers == 1), 128 * (numbers == 2), 0 * numbers], -1)
    tifffile.imwrite(tmp_path / "p.tif", numbers, photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    assert np.array_equal(volumes.read_labels(volumes.read_head(tmp_path / "p.tif"))[0], numbers)
    Image.fromarray(colours.astype(np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="a mask in colours"):
        volumes.read_labels(volumes.read_head(tmp_path / "b.png"))


@pytest.mark.parametrize("kind", ["tif", "white.tif", "png"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_mask_of_few_bits_holds_the_stored_numbers(bits: int, kind: str, tmp_path: Path) -> None:
    """As an image it is spread from black to white, as viewers show it."""
    top = 2**bits - 1
    stored = (np.arange(105).reshape(15, 7) % (top + 1)).astype(np.uint8)
    few_bits(tmp_path / f"a.{kind}", stored, bits)
    head = volumes.read_head(tmp_path / f"a.{kind}")
    assert np.array_equal(volumes.read_labels(head)[0], stored)
    if bits > 1:
        shown = (stored if kind != "white.tif" else top - stored) * (255 // top)
        assert np.array_equal(volumes.read_image(head)[0, 0], shown)


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_a_tiff_of_an_odd_number_of_bits_is_refused(bits: int, tmp_path: Path) -> None:
    few_bits(tmp_path / "a.tif", LABELS[0], bits)
    with pytest.raises(DataError, match=f"a.tif: {bits} bits a value .* cannot be read") as caught:
        volumes.read_labels(volumes.read_head(tmp_path / "a.tif"))
    assert "8-bit grey" in caught.value.hint


def few_bits(path: Path, values: Any, bits: int) -> None:
    """Write grey values of `bits` bits each, packed."""
    height, width = values.shape
    numbers = np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(height, width * bits)
    rows = [row.tobytes() for row in np.packbits(numbers, axis=1)]
    if path.suffix == ".png":
        head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
        path.write_bytes(png_of(head, b"".join(b"\0" + row for row in rows)))
        return
    body = b"".join(rows)
    body += b"\0" * (len(body) % 2)
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(".white" not in path.name), 273: 8, 277: 1}
    tags |= {278: height, 279: len(body)}
    entries = b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in tags.items())
    start = struct.pack("<2sHI", b"II", 42, 8 + len(body))
    path.write_bytes(start + body + struct.pack("<H", len(tags)) + entries + bytes(4))


@pytest.mark.parametrize("packed", [None, "zlib"])
def test_white_is_zero_turns_images_over_and_leaves_the_numbers_of_masks(packed: str | None, tmp_path: Path) -> None:
    """tifffile saves an array of bool as WhiteIsZero by itself; it and skimage read back what was saved."""
    bits = LABELS[0] == 1
    tifffile.imwrite(tmp_path / "bool.tif", bits, compression=packed)
    with tifffile.TiffFile(tmp_path / "bool.tif") as file:
        assert file.pages.first.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    head = volumes.read_head(tmp_path / "bool.tif")
    assert np.array_equal(volumes.read_labels(head)[0], bits)
    assert np.array_equal(volumes.read_image(head)[0, 0], ~bits)
    for kind, white in ((np.uint8, 255), (np.uint16, 65535)):
        stored = LABELS.astype(kind)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", compression=packed)
        head = volumes.read_head(tmp_path / "a.tif")
        assert np.array_equal(volumes.read_labels(head), LABELS)
        assert np.array_equal(volumes.read_image(head)[0], white - stored.astype(np.float32))


def test_labels_are_whole_numbers_of_any_size(tmp_path: Path) -> None:
    for name, write in (("a.nii.gz", nifti), ("a.nrrd", nrrd)):
        path = write(tmp_path / name, LABELS.astype(np.int16) * np.int16(100))
        assert np.array_equal(volumes.read_labels(volumes.read_head(path)), LABELS * np.int32(100))
    head = volumes.read_head(nifti(tmp_path / "b.nii.gz", LABELS.astype(np.float32) + np.float32(2e-4)))
    assert np.array_equal(volumes.read_labels(head), LABELS)
    assert "they are rounded" in " ".join(head.notes)
    head = volumes.read_head(nifti(tmp_path / "c.nii.gz", LABELS.astype(np.float32) / 2))
    with pytest.raises(DataError, match=r"holds 0\.5, 1\.5; the values of a mask are whole numbers"):
        volumes.read_labels(head)


@pytest.mark.parametrize("stored", ["int32", "uint32", "int64", "float64", "scaled"])
def test_labels_of_an_atlas_are_not_merged(stored: str, tmp_path: Path) -> None:
    """Numbers above 2^24, of which single precision keeps every second, fourth ... only."""
    ids = np.array([0, 312782546, 312782550, 312782554, 16777217, 182305689])
    array = np.resize(ids, (4, 5, 6))
    kind = "int32" if stored == "scaled" else stored
    image = nibabel.Nifti1Image(array.astype(kind), np.eye(4), dtype=kind)
    if stored == "scaled":
        image = nibabel.Nifti1Image((array - 5).astype(np.int32), np.eye(4))
        image.header.set_slope_inter(1, 5)
        nibabel.save(image, tmp_path / "plain.nii")
        raw = bytearray((tmp_path / "plain.nii").read_bytes())
        raw[352:] = (array - 5).astype(np.int32).tobytes("F")
        (tmp_path / "a.nii").write_bytes(raw)
    else:
        nibabel.save(image, tmp_path / "a.nii")
    head = volumes.read_head(tmp_path / "a.nii")
    assert np.array_equal(volumes.read_labels(head), array)
    assert head.notes == []


def test_the_files_of_a_header_are_those_of_its_voxels_too(tmp_path: Path) -> None:
    """A digest of the header alone stays the same where the scan is replaced."""
    image = SimpleITK.GetImageFromArray(VOLUME)
    for name in ("a.mhd", "b.nhdr", "c.mha", "d.nrrd"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
    found = {name: volumes.files_of(tmp_path / name) for name in ("a.mhd", "b.nhdr", "c.mha", "d.nrrd")}
    assert found == {
        "a.mhd": [tmp_path / "a.mhd", tmp_path / "a.raw"],
        "b.nhdr": [tmp_path / "b.nhdr", tmp_path / "b.raw"],
        "c.mha": [tmp_path / "c.mha"],
        "d.nrrd": [tmp_path / "d.nrrd"],
    }
    parts = [tmp_path / f"part {number}.raw" for number in range(5)]
    for number, part in enumerate(parts):
        part.write_bytes(VOLUME[number].tobytes())
        part.with_name(f"s{number:02}.raw").write_bytes(VOLUME[number].tobytes())
    head = (tmp_path / "a.mhd").read_text().replace("ElementDataFile = a.raw", "ElementDataFile = ")
    nrrd = (tmp_path / "b.nhdr").read_text().replace("data file: b.raw", "data file: ")
    names = "\n".join(part.name for part in parts)
    for start, suffix in ((head, ".mhd"), (nrrd, ".nhdr")):
        listed, row = tmp_path / f"list{suffix}", tmp_path / f"row{suffix}"
        listed.write_text(f"{start.rstrip()} LIST\n{names}\n")
        row.write_text(f"{start.rstrip()} s%02d.raw 0 4 1\n")
        assert volumes.files_of(listed) == [listed, *parts]
        assert volumes.files_of(row) == [row, *(tmp_path / f"s{number:02}.raw" for number in range(5))]
        for path in (listed, row):
            assert np.array_equal(volumes.read_image(volumes.read_head(path))[0], VOLUME.transpose(2, 1, 0))


def test_the_voxels_of_a_microscope_are_believed(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(LABELS, np.diag([0.5, 0.5, 2.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii.gz")
    head = volumes.read_head(tmp_path / "a.nii.gz")
    assert head.spacing == pytest.approx((5e-4, 5e-4, 2e-3))
    assert volumes.read_image(head).shape == (1, 5, 6, 7)
    assert np.array_equal(volumes.read_labels(head), LABELS)
    nibabel.save(nibabel.Nifti1Image(LABELS, np.diag([1e-7, 1e-7, 1e-7, 1.0])), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match="1e-06 to 1000 mm can be"):
        volumes.read_head(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("axes", "order"), [("CZYX", "XYZCT"), ("ZCYX", "XYCZT"), ("CTYX", ""), ("ZYX", ""), ("ZYXS", ""), ("YX", "")]
)
def test_channels_and_slices_of_an_ome_tiff(axes: str, order: str, tmp_path: Path) -> None:
    sizes = {"C": 2, "Z": 4, "T": 3, "Y": 6, "X": 7, "S": 3}
    values = RANDOM.integers(0, 200, [sizes[axis] for axis in axes]).astype(np.uint8 if "S" in axes else np.uint16)
    how: dict[str, Any] = {"photometric": "rgb"} if "S" in axes else {}
    tifffile.imwrite(tmp_path / "a.ome.tif", values, ome=True, metadata={"axes": axes}, **how)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert order in file.ome_metadata
    head = volumes.read_head(tmp_path / "a.ome.tif")
    places = [axes.replace("S", "C").replace("T", "Z").find(letter) for letter in "CZYX"]
    wanted = values.transpose([place for place in places if place >= 0])
    assert np.array_equal(volumes.read_image(head), wanted.reshape(head.channels, *head.stored))
    assert head.channels == (2 if "C" in axes else 3 if "S" in axes else 1)


def test_an_ome_tiff_whose_pages_are_not_what_it_tells(tmp_path: Path) -> None:
    """Pages of a file among several, or in an order of their own."""
    values = RANDOM.integers(0, 200, (2, 4, 6, 7)).astype(np.uint16)
    path = tmp_path / "a.ome.tif"
    for one, other, words in (
        ('SizeC="2"', 'SizeC="3"', "has 8 pages; its OME-XML tells of other ones .Z 4, C 3, T 1"),
        ('DimensionOrder="XYZCT"', 'DimensionOrder="XYZZT"', "tells of other ones"),
        ('<TiffData IFD="0"', '<TiffData FirstZ="1" IFD="0"', "page 0 is out of the order of its axes, ZCT"),
    ):
        tifffile.imwrite(path, values, ome=True, metadata={"axes": "CZYX"})
        with tifffile.TiffFile(path) as file:
            about = file.ome_metadata
        assert one in about
        tifffile.imwrite(path, values.reshape(8, 6, 7), description=about.replace(one, other), metadata=None)
        with pytest.raises(DataError, match=words):
            volumes.read_head(path)


@pytest.mark.parametrize("name", ["Läsion", "腫瘍"])
@pytest.mark.parametrize("suffix", [".tif", ".png", ".nii.gz", ".nrrd"])
def test_names_of_classes_in_any_script(suffix: str, name: str, tmp_path: Path) -> None:
    like, path = tmp_path / f"i{suffix}", tmp_path / f"o{suffix}"
    stored = LABELS[:1] if suffix in (".tif", ".png") else LABELS
    if suffix == ".tif":
        tifffile.imwrite(like, stored[0])
    elif suffix == ".png":
        Image.fromarray(stored[0]).save(like)
    else:
        (nrrd if suffix == ".nrrd" else nifti)(like, stored)
    volumes.write_labels(path, stored, like, {"class_0": "background", "class_1": name})
    assert np.array_equal(volumes.read_labels(volumes.read_head(path)), stored)
    if suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            assert f"class_1: {name}" in file.pages.first.description
    elif suffix == ".nii.gz":
        assert name.encode() in nibabel.load(path).header.extensions[0].get_content()
    elif suffix == ".nrrd":
        assert SimpleITK.ReadImage(str(path)).GetMetaData("class_1") == name
    else:
        assert Image.open(path).text["class_1"] == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.bmp", "is no format that is read here"),
        ("a.npy", "may be an image in colours"),
        ("b.npy", "is an array of 3 float64"),
        ("t.tif", "run over several axes"),
        ("a.nii.gz", "one volume of three dimensions"),
        ("a.nrrd", "cannot be read as an image"),
        ("a.jpg", "cannot be read"),
        ("c.jpg", "is a JPEG with CMYK colours"),
        ("none.png", "No such file"),
    ],
)
def test_what_cannot_be_read_is_said(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.bmp").write_bytes(b"BM")
    np.save(tmp_path / "a.npy", np.zeros((16, 16, 3)))
    np.save(tmp_path / "b.npy", np.zeros(3))
    tifffile.imwrite(tmp_path / "t.tif", np.zeros((2, 3, 6, 7), np.uint16), imagej=True, metadata={"axes": "TZYX"})
    nifti(tmp_path / "a.nii.gz", np.zeros((5, 6, 7, 2), np.int16))
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\ntype: short\n")
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff no picture")
    Image.new("CMYK", (8, 8)).save(tmp_path / "c.jpg")
    with pytest.raises(DataError, match=words):
        volumes.read_head(tmp_path / name)


def test_a_jpeg_is_no_mask(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="JPEG is lossy"):
        volumes.read_labels(volumes.read_head(tmp_path / "a.jpg"))


def test_the_library_of_two_formats_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nrrd(tmp_path / "a.nrrd", LABELS)
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(DataError) as caught:
        volumes.read_head(path)
    assert "pip install 'unet-accelerators[formats]'" in caught.value.hint


def test_a_written_volume_has_the_grid_of_its_image(tmp_path: Path) -> None:
    like = nrrd(tmp_path / "a.nrrd", VOLUME.astype(np.int16), direction=(0, 1, 0, 1, 0, 0, 0, 0, -1))
    itk.write_like(tmp_path / "out.nrrd", LABELS, like, {"class_1": "tumour"})
    one, other = SimpleITK.ReadImage(str(like)), SimpleITK.ReadImage(str(tmp_path / "out.nrrd"))
    for name in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(one, name)() == getattr(other, name)()
    assert other.GetMetaData("class_1") == "tumour"
    assert np.array_equal(SimpleITK.GetArrayFromImage(other).transpose(2, 1, 0), LABELS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nrrd", "out.nrrd"]


def test_the_endings_that_a_command_line_knows_are_those_of_the_formats() -> None:
    assert set(check_paths.IMAGES) == set(volumes.FORMATS)


def test_a_row_of_files_takes_no_memory_for_its_names(tmp_path: Path) -> None:
    """A name of a header with a place for a number of any width."""
    for name, found in (("a%03d.raw", 2), ("a%999999999d.raw", 0), ("a%s.raw", 0), ("a%d%d.raw", 0)):
        (tmp_path / "a.mhd").write_text(f"ElementDataFile = {name} 1 2 1\n")
        for number in (1, 2):
            (tmp_path / f"a{number:03}.raw").write_bytes(b"")
        assert len(itk.data_files(tmp_path / "a.mhd")) == found
