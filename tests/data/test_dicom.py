"""DICOM series as images: geometry and values against SimpleITK, what is refused and with which words, that nothing of
a header is told, the files that pydicom ships."""

from __future__ import annotations

import shutil
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", "3", reason="the extra `dicom` is not installed")
highdicom = pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")
import dicom_series as made  # noqa: E402
import SimpleITK  # noqa: E402
from dicom_series import AXIAL, ID, OBLIQUE, SECRET, series, values  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from unet import host  # noqa: E402
from unet.data.io import volumes  # noqa: E402
from unet.data.io.dicom import files, pixels  # noqa: E402
from unet.errors import DataError  # noqa: E402

SHIPPED = Path(pydicom.__file__).parent / "data/test_files"


def refused(path: Path, read: bool = False) -> str:
    """The two lines with which an image is refused; nothing of the patient is in them."""
    with pytest.raises(DataError) as caught:
        head = volumes.read_head(path)
        if read:
            volumes.read_image(head)
    words = str(caught.value)
    assert len(words.splitlines()) == 2, words
    assert str(caught.value.hint)
    assert not any(secret in words for secret in (SECRET, ID, "Doe", "19510203", "20190405", "Roe", "A-99"))
    return words


def by_itk(paths: list[Path]) -> tuple[Any, Any]:
    """(values, affine from (slice, row, column) to RAS) as SimpleITK reads the files, in this order."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in paths])
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = (np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE, (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0)])
def test_a_series_lies_where_simpleitk_says(orientation: tuple[float, ...], tmp_path: Path) -> None:
    affine = series(tmp_path / "s", orientation=orientation)
    head = volumes.read_head(tmp_path / "s")
    image = volumes.read_image(head)
    assert head.stored == (6, 12, 10)
    assert head.spacing == pytest.approx(made.SPACING, abs=1e-6)
    assert head.affine == pytest.approx(affine, abs=1e-6)
    assert np.array_equal(image[0], values().astype(np.float32) - 1024)
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "s"))
    theirs, place = by_itk([Path(name) for name in names])
    assert head.affine == pytest.approx(place, abs=1e-5)
    assert np.array_equal(theirs, image[0])


def test_a_real_series_that_pydicom_ships(tmp_path: Path) -> None:
    folder = SHIPPED / "dicomdirtests/98892001/CT5N"
    head = volumes.read_head(folder)
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    theirs, place = by_itk([Path(name) for name in names])
    assert head.affine == pytest.approx(place, abs=1e-4)
    assert np.array_equal(volumes.read_image(head)[0], theirs)
    assert head.notes == []
    above = volumes.read_head(SHIPPED / "dicomdirtests/98892001")  # with the overview images of the study
    assert above.stored == head.stored
    assert "series 2: CT, 5 slices of 16 x 16" in above.notes[0]
    assert "an overview image" in above.notes[0]


def shipped() -> list[Path]:
    return [path for path in sorted(SHIPPED.rglob("*")) if path.is_file() and "TINY_ALPHA" not in path.parts]


READ = {  # values that pydicom's own reader gives, by the file
    *("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm"),
    *("MR_small_implicit.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm"),
    *("693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "image_dfl.dcm", "JPEGLSNearLossless_16.dcm"),
    *("examples_overlay.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle_16bit.dcm", "ExplVR_BigEnd.dcm", "6154", "17106"),
}


@pytest.mark.filterwarnings("ignore")  # of pydicom, where the test itself reads
def test_every_file_that_pydicom_ships_is_read_or_refused_in_two_lines(capfd: pytest.CaptureFixture[str]) -> None:
    read = set()
    for path in shipped():
        if volumes.kind_of(path) != volumes.DICOM:
            continue
        try:
            head = volumes.read_head(path)
            image = volumes.read_labels(head)[None] if head.segments else volumes.read_image(head)
        except DataError as error:
            assert len(str(error).splitlines()) == 2
            assert error.__suppress_context__ or error.__context__ is None, path
            continue
        read.add(path.name)
        assert image.shape == (head.channels, *head.stored)
        with open(path, "rb") as stream:
            known = pydicom.dcmread(stream)
        if path.name in READ and known.SamplesPerPixel == 1:
            theirs = pydicom.pixels.apply_modality_lut(known.pixel_array, known)
            own = image[0, 0]
            if known.PhotometricInterpretation == "MONOCHROME1":
                own = own.max() + own.min() - own
                theirs = theirs - theirs.min() + own.min()
            assert np.allclose(own, theirs, rtol=1e-6), path
    assert read >= READ
    assert len(read) >= 70
    said = capfd.readouterr()
    assert not said.out
    assert "Warning" not in said.err


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name[:12])
def test_compressed_series(syntax: Any, tmp_path: Path) -> None:
    large = values(3, 64, 64)  # JPEG 2000 halves the sides five times
    series(tmp_path / "s", large, change=lambda header, number: header.compress(syntax))
    head = volumes.read_head(tmp_path / "s")
    assert np.array_equal(volumes.read_image(head)[0], large.astype(np.float32) - 1024)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_syntaxes(syntax: Any, tmp_path: Path) -> None:
    def change(header: Any, number: int) -> None:
        header.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            header.PixelData = values()[number].astype(">u2").tobytes()
            header.set_original_encoding(False, False)

    series(tmp_path / "s", change=change)
    head = volumes.read_head(tmp_path / "s")
    assert np.array_equal(volumes.read_image(head)[0], values().astype(np.float32) - 1024)


def test_values_are_those_of_each_slice_header(tmp_path: Path) -> None:
    def change(header: Any, number: int) -> None:
        header.RescaleSlope, header.RescaleIntercept = 0.5 + number, -10 * number

    series(tmp_path / "s", change=change)
    image = volumes.read_image(volumes.read_head(tmp_path / "s"))[0]
    for number, plane in enumerate(values()):
        assert image[number] == pytest.approx(plane * (0.5 + number) - 10 * number)


def test_signs_bits_and_inverted_grey_values(tmp_path: Path) -> None:
    signed = (values().astype(np.int16) - 1000) % 2**12  # 12 bits, two's complement, with an overlay in the bits above

    def as_signed(header: Any, number: int) -> None:
        header.PixelRepresentation, header.BitsStored, header.HighBit = 1, 12, 11
        header.PixelData = (signed[number].astype("<u2") | 0x8000).tobytes()
        header.RescaleIntercept = 0

    series(tmp_path / "a", change=as_signed)
    assert np.array_equal(volumes.read_image(volumes.read_head(tmp_path / "a"))[0], values().astype(np.float32) - 1000)

    def high(header: Any, number: int) -> None:
        header.BitsStored, header.HighBit, header.RescaleIntercept = 12, 14, 0
        header.PixelData = (values()[number].astype("<u2") * 8 | 0x8001).tobytes()

    series(tmp_path / "c", change=high)
    assert np.array_equal(volumes.read_image(volumes.read_head(tmp_path / "c"))[0], values())

    def inverted(header: Any, number: int) -> None:
        header.PhotometricInterpretation, header.BitsStored, header.HighBit = "MONOCHROME1", 12, 11
        header.RescaleIntercept = 0

    series(tmp_path / "b", change=inverted)
    assert np.array_equal(volumes.read_image(volumes.read_head(tmp_path / "b"))[0], 4095 - values().astype(np.float32))


def test_an_enhanced_file_is_its_classic_series(tmp_path: Path) -> None:
    for modality in ("CT", "MR"):
        affine = series(tmp_path / modality, name=modality, orientation=OBLIQUE, modality=modality)
        file = made.enhanced(tmp_path / f"{modality}-enhanced", tmp_path / modality)
        classic = volumes.read_image(volumes.read_head(tmp_path / modality))
        for path in (file, file.parent):
            head = volumes.read_head(path)
            assert head.affine == pytest.approx(affine, abs=1e-6)
            assert np.array_equal(volumes.read_image(head), classic)


def test_a_second_copy_of_the_files_is_kept_once(tmp_path: Path) -> None:
    series(tmp_path / "s/a")
    shutil.copytree(tmp_path / "s/a", tmp_path / "s/copy")
    head = volumes.read_head(tmp_path / "s")
    assert head.stored == (6, 12, 10)
    assert "6 slices twice with the same voxels; one of each is kept" in head.notes[0]
    assert np.array_equal(volumes.read_image(head)[0], values().astype(np.float32) - 1024)


def test_echoes_of_one_series_are_listed_and_chosen(tmp_path: Path) -> None:
    for number, echo in enumerate((2.5, 10)):

        def change(header: Any, _: int, echo: float = echo, number: int = number) -> None:
            header.EchoTime, header.AcquisitionTime = echo, "101112"
            header.SOPInstanceUID = f"{header.SOPInstanceUID}.{number}"
            header.SeriesInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["both"])

        series(tmp_path / "s", values(seed=number), name=f"e{number}", change=change, modality="MR")
    words = refused(tmp_path / "s")
    assert "2 series" in words
    assert "1: MR, 6 slices of 12 x 10, 2.5 x 0.8 x 0.7 mm, EchoTime 2.5" in words
    assert "EchoTime 10" in words
    assert "--series" in words
    for number in (0, 1):
        image = volumes.read_image(volumes.read_head(tmp_path / f"s#{number + 1}"))
        assert np.array_equal(image[0], values(seed=number))
    both = pydicom.uid.generate_uid(entropy_srcs=["both"])
    assert "several parts of the series" in refused(tmp_path / f"s#{both}")


def test_images_at_one_place_that_no_header_tells_apart(tmp_path: Path) -> None:
    series(tmp_path / "s")
    for path in sorted((tmp_path / "s").iterdir())[:2]:
        header = pydicom.dcmread(path)
        header.PixelData = header.PixelData[::-1]
        header.SOPInstanceUID += ".1"
        header.ContentTime = "111213.5"
        header.save_as(tmp_path / f"s/{path.name}b")
    words = refused(tmp_path / "s")
    assert "2 images lie at one place (2 of 6 places), and differ in ContentTime" in words
    assert "111213" not in words


def rows(header: Any, number: int) -> None:
    if number == 3:
        header.Rows, header.PixelData = 6, header.PixelData[:120]


def one_more(name: str, value: Any, at: int = 3) -> made.Change:
    return lambda header, number: setattr(header, name, value) if number == at else None


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"places": (0, 1, 2, 4, 5, 6)}, "1 slice missing: the gap between slices 3 and 4 of 6"),
        ({"places": (0, 1, 3, 4, 7, 8)}, "3 slices missing"),
        ({"places": (0, 1, 2, 3.4, 4.4, 5.4)}, "not evenly spaced: 3.5 mm between slices 3 and 4 of 6"),
        ({"tilt": 0.8}, "a gantry tilt of 17.7 degrees"),
        ({"change": one_more("ImageOrientationPatient", list(OBLIQUE))}, "different orientations: 1 slice of 6"),
        ({"change": one_more("PixelSpacing", [0.8, 0.71])}, "different pixel spacings: 1 slice of 6"),
        ({"change": rows}, "different sizes: 1 slice of 6 differ from the first (12 x 10, 6 x 10)"),
        ({"change": one_more("PatientID", "ID-4712")}, "holds images of 2 patients"),
        ({"change": one_more("FrameOfReferenceUID", "1.2.3")}, "different frames of reference"),
        ({"change": lambda header, number: header.pop("ImagePositionPatient")}, "6 images do not say where they lie"),
        ({"orientation": (1, 0, 0, 0.5, 0.5, 0)}, "not at right angles"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_makes_no_grid_is_refused_with_its_place(how: dict[str, Any], words: str, tmp_path: Path) -> None:
    series(tmp_path / "s", **how)
    assert words in refused(tmp_path / "s")


def test_patients_without_numbers_are_told_apart_by_their_names(tmp_path: Path) -> None:
    for name in ("Doe^Jane", "Doe^John"):

        def change(header: Any, _: int, name: str = name) -> None:
            header.PatientID, header.PatientName = "", name

        series(tmp_path / f"s/{name[-4:]}", name=name, change=change)
    assert "images of 2 patients" in refused(tmp_path / "s")
    assert volumes.read_head(tmp_path / "s/Jane").stored == (6, 12, 10)
    assert "images of 2 patients" in refused(tmp_path / "s#1")  # also where a series is named


def test_localisers_and_other_series_are_listed(tmp_path: Path) -> None:
    series(tmp_path / "s", name="b", change=lambda header, _: setattr(header, "SeriesNumber", 2))
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    series(tmp_path / "s", values(3, 20, 20), name="a", orientation=OBLIQUE, change=one_more("ImageType", scout, 0))
    for path in (tmp_path / "s").glob("a*"):  # three planes of a localiser: no grid
        header = pydicom.dcmread(path)
        header.ImageType = scout
        header.save_as(path)
    head = volumes.read_head(tmp_path / "s")
    assert head.stored == (6, 12, 10)
    assert (
        "series 2: CT, 6 slices of 12 x 10, 2.5 x 0.8 x 0.7 mm is taken; others there: 1: CT, 3 slices" in head.notes[0]
    )
    series(tmp_path / "s", values(4), name="c", change=lambda header, _: setattr(header, "SeriesNumber", 3))
    words = refused(tmp_path / "s")
    assert "holds 3 series" in words
    assert "3: CT, 4 slices of 12 x 10" in words
    assert volumes.read_head(tmp_path / "s#3").stored == (4, 12, 10)
    uid = pydicom.uid.generate_uid(entropy_srcs=["b"])
    assert volumes.read_head(tmp_path / f"s#{uid}").stored == (6, 12, 10)
    assert volumes.files_of(tmp_path / f"s#{uid}") == sorted((tmp_path / "s").glob("b*"))
    assert "no series 9" in refused(tmp_path / "s#9")


def test_a_localiser_inside_of_a_series_is_left_out(tmp_path: Path) -> None:
    def change(header: Any, number: int) -> None:
        if number == 0:
            header.ImageType, header.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [0, 1, 0, 0, 0, -1]

    series(tmp_path / "s", change=change)
    head = volumes.read_head(tmp_path / "s")
    assert head.stored == (5, 12, 10)
    assert "1 overview image of the series left out" in head.notes[0]


def test_other_files_in_the_folder_do_no_harm(tmp_path: Path) -> None:
    series(tmp_path / "s")
    for name in ("rtstruct.dcm", "rtplan.dcm", "rtdose.dcm", "reportsi.dcm", "dicomdirtests/DICOMDIR", "test1.json"):
        shutil.copy(SHIPPED / name, tmp_path / "s")
    (tmp_path / "s/empty.dcm").write_bytes(b"")
    (tmp_path / "s/README").write_text("of this export")
    bare = pydicom.dcmread(next((tmp_path / "s").glob("one*")))
    del bare.PixelData
    bare.SOPInstanceUID += ".9"
    bare.save_as(tmp_path / "s/header_only")
    head = volumes.read_head(tmp_path / "s")
    assert head.stored == (6, 12, 10)
    (note,) = head.notes  # these may have been slices
    assert "left out: image without voxels 1, empty file 1" in note
    for path in (tmp_path / "s").glob("one*"):
        path.unlink()
    words = refused(tmp_path / "s")
    assert "there is no DICOM image" in words
    assert "RT structure set 1" in words
    assert "image without voxels 1" in words
    (tmp_path / "e").mkdir()
    assert not volumes.is_image(tmp_path / "e")


def test_a_single_slice_and_an_x_ray(tmp_path: Path) -> None:
    series(tmp_path / "s", values(1))
    (file,) = (tmp_path / "s").iterdir()
    head = volumes.read_head(file)
    assert head.stored == (1, 12, 10)
    assert head.spacing == (1.0, 0.8, 0.7)
    flat = volumes.read_head(SHIPPED / "dicomdirtests/77654033/CR1/6154")
    assert flat.flat
    assert flat.codes is None


@pytest.mark.parametrize("cut", [200, 600, 900, 1300])
def test_a_file_that_is_cut_short(cut: int, tmp_path: Path) -> None:
    series(tmp_path / "s")
    path = min((tmp_path / "s").iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 50)])
    with pytest.raises(DataError) as caught:
        volumes.read_image(volumes.read_head(tmp_path / "s"))
    assert SECRET not in str(caught.value)


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(header: Any, number: int) -> None:
        header.Rows = header.Columns = 60000

    series(tmp_path / "s", change=change)
    monkeypatch.setattr(host, "memory", lambda: (2**33, 2**32))
    assert "of memory are free" in refused(tmp_path / "s", read=True)
    monkeypatch.undo()

    def frames(header: Any, number: int) -> None:
        header.NumberOfFrames = 2**30

    series(tmp_path / "t", values(1), change=frames)
    assert "tells of 1073741824 frames" in refused(tmp_path / "t")


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name[:12])
def test_a_compressed_slice_larger_than_its_header(syntax: Any, tmp_path: Path) -> None:
    def change(header: Any, number: int) -> None:
        header.compress(syntax)
        header.Rows = header.Columns = 16

    series(tmp_path / "s", values(3, 64, 64), change=change)
    assert "tells of 16 x 16 pixels, its compressed voxels of 64 x 64" in refused(tmp_path / "s", read=True)


def test_a_mosaic_is_no_slice(tmp_path: Path) -> None:
    series(
        tmp_path / "s", change=lambda header, _: setattr(header, "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    )
    assert "is a mosaic" in refused(tmp_path / "s")


def test_a_deflated_file_that_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "s", values(1))
    (path,) = (tmp_path / "s").iterdir()
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(path)
    start = path.read_bytes()
    group = struct.unpack("<I", start[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(2**24)) for _ in range(20)) + packer.flush()
    path.write_bytes(start[: 144 + group] + bomb)
    monkeypatch.setattr(host, "memory", lambda: (2**30, 2**30))
    assert "unpacks to more than" in refused(path)


def test_syntaxes_that_nothing_unpacks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def video(header: Any, number: int) -> None:
        header.compress(RLELossless)
        header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"

    series(tmp_path / "s", change=video)
    assert "stored as MPEG2 Main Profile / Main Level, which is not read" in refused(tmp_path / "s", read=True)
    series(tmp_path / "j", values(3, 64, 64), change=lambda header, number: header.compress(JPEG2000Lossless))
    monkeypatch.setattr(type(pydicom.pixels.get_decoder(JPEG2000Lossless)), "is_available", property(lambda _: False))
    words = refused(tmp_path / "j", read=True)
    assert "JPEG 2000 Image Compression (Lossless Only), which no installed package unpacks" in words
    assert "pip install pylibjpeg" in words


def test_warnings_and_logs_of_the_library_are_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    """They hold values of headers."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        volumes.read_image(volumes.read_head(SHIPPED / "MR_small_padded.dcm"))
    assert not shown
    assert not caplog.records


def test_dicom_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "s")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError) as caught:
        volumes.read_head(tmp_path / "s")
    assert "pip install 'unet-accelerators[dicom]'" in caught.value.hint


def test_headers_are_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "s")
    volumes.read_head(tmp_path / "s")
    monkeypatch.setattr("unet.data.io.dicom.series.read_header", None)
    assert volumes.read_head(tmp_path / "s").stored == (6, 12, 10)
    monkeypatch.undo()
    min((tmp_path / "s").iterdir()).unlink()  # the folder changed: it is looked at again
    assert "missing" in refused(tmp_path / "s") or volumes.read_head(tmp_path / "s").stored == (5, 12, 10)


def test_names_and_places_of_paths(tmp_path: Path) -> None:
    (tmp_path / "a#1").mkdir()
    assert files.parted(tmp_path / "a#1") == (tmp_path / "a#1", "")
    assert files.parted(tmp_path / "b#2") == (tmp_path / "b", "2")
    (tmp_path / "scan.v2").mkdir()
    assert volumes.stem(tmp_path / "scan.v2") == "scan.v2"
    assert volumes.stem(tmp_path / "scan.v2#3") == "scan.v2"
    assert pixels.SURE > 0
