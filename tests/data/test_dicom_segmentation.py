"""DICOM-SEG: what is written is read back by highdicom and pydicom, voxel by voxel; that of others is a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", "3", reason="the extra `dicom` is not installed")
highdicom = pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")
import dicom_series as made  # noqa: E402
from dicom_series import ID, OBLIQUE, SECRET, series, values  # noqa: E402

from unet.data.io import volumes  # noqa: E402
from unet.data.io.dicom import terms  # noqa: E402
from unet.errors import DataError  # noqa: E402

NAMES = {"class_0": "background", "class_1": "liver", "class_4": "liver tumour"}
DIGEST = "0123456789abcdef"


def labels(empty: bool = False) -> Any:
    """(slices, rows, columns) of 0, 1 and 4; the first and the last slice hold nothing."""
    found = np.zeros((6, 12, 10), np.uint8)
    if not empty:
        found[1:5, 2:7, 3:9], found[2:4, 4, 5] = 1, 4
    return found


def written(folder: Path, like: Path, array: Any) -> tuple[Path, Any]:
    path = folder / "out.dcm"
    volumes.write_labels(path, array, like, NAMES, DIGEST)
    return path, highdicom.seg.segread(path)


@pytest.mark.parametrize("orientation", [made.AXIAL, OBLIQUE, (0, 1, 0, 0, 0, -1)])
def test_a_written_segmentation_is_read_by_both_libraries(orientation: Any, tmp_path: Path) -> None:
    affine = series(tmp_path / "s", orientation=orientation)
    path, found = written(tmp_path, tmp_path / "s", labels())
    head = volumes.read_head(tmp_path / "s")
    order = [volumes.dicom.series.find(tmp_path / "s").grid.planes[number].uid for number in range(6)]
    pixels = found.get_pixels_by_source_instance(order, combine_segments=True, assert_missing_frames_are_empty=True)
    assert np.array_equal(pixels, np.where(labels() == 4, 2, labels()))
    volume = found.get_volume(combine_segments=True)
    place = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    for voxel in np.argwhere(labels()):
        at = np.linalg.inv(place) @ affine @ [*voxel, 1]
        assert at == pytest.approx(np.rint(at), abs=1e-4)
        assert volume.array[tuple(np.rint(at[:3]).astype(int))] == {1: 1, 4: 2}[labels()[tuple(voxel)]]
    plain = pydicom.dcmread(path)
    frames = plain.pixel_array
    assert frames.sum() == (labels() > 0).sum()
    assert plain.Rows == 12
    volumes.write_labels(tmp_path / "out.nii.gz", labels(), tmp_path / "s", NAMES)
    nifti = nibabel.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asarray(nifti.dataobj).transpose(2, 1, 0), labels())
    assert nifti.affine == pytest.approx(affine[:, [2, 1, 0, 3]], abs=1e-4)
    assert nifti.get_qform() == pytest.approx(nifti.get_sform(), abs=1e-4)
    for name in ("out.dcm", "out.nii.gz"):
        again = volumes.read_head(tmp_path / name, head)
        assert volumes.mismatch(head, again) == []
        assert np.array_equal(volumes.stored_like(head, again, volumes.read_labels(again)), labels())


@pytest.mark.parametrize("name", ["Leberläsion", "腫瘍"])
@pytest.mark.parametrize(
    ("letters", "patient"),
    [
        ("ISO_IR 100", "Müller^Änne"),
        ("ISO_IR 192", "山田^太郎"),
        ("ISO_IR 144", "Иванов^Пётр"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ],
)
def test_names_in_any_script(letters: Any, patient: str, name: str, tmp_path: Path) -> None:
    """Also where the source has its own character set, which its texts are brought out of."""
    series(tmp_path / "s")
    for path in (tmp_path / "s").iterdir():
        source = pydicom.dcmread(path)
        source.SpecificCharacterSet, source.PatientName = letters, patient
        source.save_as(path)
    volumes.write_labels(tmp_path / "out.dcm", labels(), tmp_path / "s", {**NAMES, "class_4": name})
    found = pydicom.dcmread(tmp_path / "out.dcm")
    assert [item.SegmentLabel for item in found.SegmentSequence] == ["liver", name]
    assert found.PatientName == patient


def test_patient_study_and_references_are_those_of_the_source(tmp_path: Path) -> None:
    series(tmp_path / "s")
    path, _ = written(tmp_path, tmp_path / "s", labels())
    found, source = pydicom.dcmread(path), pydicom.dcmread(next((tmp_path / "s").iterdir()))
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"):
        assert found[keyword].value == source[keyword].value
    for keyword in ("FrameOfReferenceUID", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
        assert found[keyword].value == source[keyword].value
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert found.Modality == "SEG"
    (referenced,) = found.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    uids = {pydicom.dcmread(each).SOPInstanceUID for each in (tmp_path / "s").iterdir()}
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == uids
    first, second = found.SegmentSequence
    assert (first.SegmentLabel, second.SegmentLabel) == ("liver", "liver tumour")
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    (algorithm,) = first.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == "unet"
    assert DIGEST in str(algorithm.AlgorithmParameters)
    assert found.DeviceSerialNumber == DIGEST


def test_an_empty_mask_has_frames_without_a_voxel(tmp_path: Path) -> None:
    series(tmp_path / "s")
    path, found = written(tmp_path, tmp_path / "s", labels(empty=True))
    assert not pydicom.dcmread(path).pixel_array.any()
    assert found.number_of_segments == 2
    head = volumes.read_head(path, volumes.read_head(tmp_path / "s"))
    assert not volumes.read_labels(head).any()


def test_an_enhanced_source_is_referred_to_by_its_frames(tmp_path: Path) -> None:
    series(tmp_path / "s", orientation=OBLIQUE)
    file = made.enhanced(tmp_path / "e", tmp_path / "s")
    _, found = written(tmp_path, tmp_path / "e", labels())
    planes = volumes.dicom.series.find(tmp_path / "e").grid.planes
    uid = pydicom.dcmread(file).SOPInstanceUID
    numbers = [plane.frame + 1 for plane in planes]
    assert numbers != sorted(numbers)
    pixels = found.get_pixels_by_source_frame(uid, numbers, combine_segments=True, assert_missing_frames_are_empty=True)
    assert np.array_equal(pixels, np.where(labels() == 4, 2, labels()))


def test_a_source_with_a_bare_header(tmp_path: Path) -> None:
    """Without what the standard wants to be there if only empty, as anonymised files are."""

    def change(header: Any, number: int) -> None:
        for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyTime", "StudyID", "AccessionNumber"):
            delattr(header, keyword)

    series(tmp_path / "s", change=change)
    _, found = written(tmp_path, tmp_path / "s", labels())
    assert found.PatientID == ID
    for name, thickness in (("a", None), ("b", ...)):

        def thin(header: Any, number: int, thickness: Any = thickness) -> None:
            header.SliceThickness = None
            if thickness is ...:
                del header.SliceThickness

        series(tmp_path / name, change=thin)
        _, found = written(tmp_path, tmp_path / name, labels())
        measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (2.5, 2.5)

    def without_study(header: Any, number: int) -> None:
        del header.StudyInstanceUID

    series(tmp_path / "t", change=without_study)
    with pytest.raises(DataError, match="cannot be the source of a DICOM-SEG") as caught:
        written(tmp_path, tmp_path / "t", labels())
    assert SECRET not in str(caught.value)
    assert "--format nifti" in caught.value.hint


def test_a_source_without_a_frame_of_reference(tmp_path: Path) -> None:
    series(tmp_path / "s", change=lambda header, _: header.pop("FrameOfReferenceUID"))
    path, found = written(tmp_path, tmp_path / "s", labels())
    assert found.FrameOfReferenceUID
    head = volumes.read_head(path, volumes.read_head(tmp_path / "s"))
    assert np.array_equal(volumes.read_labels(head), labels())


@pytest.mark.parametrize("name", ["dicomdirtests/77654033/CR1/6154", "SC_rgb_rle.dcm", "examples_rgb_color.dcm"])
def test_an_image_without_a_place_in_space(name: str, tmp_path: Path) -> None:
    source = Path(pydicom.__file__).parent / "data/test_files" / name
    rows, columns = volumes.read_head(source).stored[1:]
    mask = np.zeros((1, rows, columns), np.uint8)
    mask[0, 3:9, 4:7] = 1
    volumes.write_labels(tmp_path / "out.dcm", mask, source, NAMES, DIGEST)
    assert np.array_equal(highdicom.seg.segread(tmp_path / "out.dcm").pixel_array.reshape(-1, rows, columns)[:1], mask)
    like = volumes.read_head(source)
    head = volumes.read_head(tmp_path / "out.dcm", like)
    assert volumes.mismatch(like, head) == []
    assert np.array_equal(volumes.read_labels(head), mask)


def by_highdicom(path: Path, folder: Path, array: Any, kind: str = "BINARY") -> Path:
    """A segmentation as another program writes it: (slices, rows, columns, segments), slices as files are sorted."""
    sources = [pydicom.dcmread(each) for each in sorted(folder.iterdir())]
    codes = pydicom.sr.codedict.codes.SCT
    segments = [
        highdicom.seg.SegmentDescription(number + 1, f"s{number}", codes.Tissue, codes.Tissue, "MANUAL")
        for number in range(array.shape[-1])
    ]
    found = highdicom.seg.Segmentation(
        *(sources, array, kind, segments, pydicom.uid.generate_uid(), 7, pydicom.uid.generate_uid(), 1),
        *("maker", "model", "1", "serial"),
        content_creator_name="Roe^Richard",
    )
    found.save_as(path)
    return path


def test_a_segmentation_of_another_program_is_a_mask(tmp_path: Path) -> None:
    series(tmp_path / "s", orientation=OBLIQUE)
    like = volumes.read_head(tmp_path / "s")
    planes = volumes.dicom.series.find(tmp_path / "s").grid.planes
    order = [sorted((tmp_path / "s").iterdir()).index(plane.path) for plane in planes]
    one_hot = np.zeros((6, 12, 10, 2), np.uint8)
    for place, number in enumerate(order):
        one_hot[number, ..., 0], one_hot[number, ..., 1] = labels()[place] == 1, labels()[place] == 4
    (tmp_path / "m").mkdir()
    by_highdicom(tmp_path / "m/any", tmp_path / "s", one_hot)
    for path in (tmp_path / "m", tmp_path / "m/any"):
        head = volumes.read_head(path, like)
        assert head.stored == (6, 12, 10)
        assert volumes.mismatch(like, head) == []
        assert np.array_equal(volumes.read_labels(head), np.where(labels() == 4, 2, labels()))
    alone = volumes.read_head(tmp_path / "m/any")  # without its series: the frames that it holds
    assert alone.stored == (4, 12, 10)
    assert np.array_equal(volumes.read_labels(alone), np.where(labels() == 4, 2, labels())[1:5])
    volumes.write_labels(tmp_path / "mask.nii.gz", labels(), tmp_path / "s", NAMES)
    mask, prediction = volumes.read_heads(tmp_path / "mask.nii.gz", tmp_path / "m/any")
    assert volumes.mismatch(mask, prediction) == []
    turned = volumes.stored_like(mask, prediction, volumes.read_labels(prediction))
    assert np.array_equal(turned > 0, volumes.read_labels(mask) > 0)


def test_segmentations_of_different_frames_meet_on_one_grid(tmp_path: Path) -> None:
    series(tmp_path / "s")
    low, high = labels(), labels()
    low[3:], high[:3] = 0, 0
    for name, array in (("low", low), ("high", high)):
        volumes.write_labels(tmp_path / f"{name}.dcm", array, tmp_path / "s", NAMES)
    one, other = volumes.read_heads(tmp_path / "low.dcm", tmp_path / "high.dcm")
    assert volumes.mismatch(one, other) == []
    assert np.array_equal(np.maximum(volumes.read_labels(one), volumes.read_labels(other)), labels()[1:5])


def test_segmentations_that_are_no_label_map(tmp_path: Path) -> None:
    series(tmp_path / "s")
    both = np.ones((6, 12, 10, 2), np.uint8)
    head = volumes.read_head(by_highdicom(tmp_path / "a.dcm", tmp_path / "s", both))
    with pytest.raises(DataError, match="segments overlap"):
        volumes.read_labels(head)
    share = np.full((6, 12, 10, 1), 0.5, np.float32)
    with pytest.raises(DataError, match="holds fractional segments"):
        volumes.read_head(by_highdicom(tmp_path / "b.dcm", tmp_path / "s", share, "FRACTIONAL"))
    series(tmp_path / "other", orientation=OBLIQUE)
    like = volumes.read_head(tmp_path / "other")
    found = volumes.read_head(by_highdicom(tmp_path / "c.dcm", tmp_path / "s", both[..., :1]), like)
    assert any("direction" in words for words in volumes.mismatch(like, found))


def test_a_label_map_segmentation(tmp_path: Path) -> None:
    series(tmp_path / "s")
    array = np.zeros((6, 12, 10), np.uint8)
    array[2, 3:5, 3:5], array[4, 1, 1] = 1, 2
    sources = [plane.path for plane in volumes.dicom.series.find(tmp_path / "s").grid.planes]
    codes = pydicom.sr.codedict.codes.SCT
    segments = [highdicom.seg.SegmentDescription(n, f"s{n}", codes.Tissue, codes.Tissue, "MANUAL") for n in (1, 2)]
    found = highdicom.seg.Segmentation(
        *([pydicom.dcmread(each) for each in sources], array, "LABELMAP", segments, pydicom.uid.generate_uid(), 7),
        *(pydicom.uid.generate_uid(), 1, "maker", "model", "1", "serial"),
    )
    found.save_as(tmp_path / "map.dcm")
    head = volumes.read_head(tmp_path / "map.dcm", volumes.read_head(tmp_path / "s"))
    assert np.array_equal(volumes.read_labels(head), array)


def test_a_series_of_labels_is_a_mask_too(tmp_path: Path) -> None:
    def change(header: Any, number: int) -> None:
        header.RescaleIntercept = 0

    series(tmp_path / "s", values() % 3, change=change)
    assert np.array_equal(volumes.read_labels(volumes.read_head(tmp_path / "s")), values() % 3)


@pytest.mark.parametrize(
    ("name", "category", "kind"),
    [
        ("Kidneys", "91723000", "64033007"),
        ("tumour", "49755003", "108369006"),
        ("lesion", "49755003", "52988006"),
        ("class 7", "85756007", "85756007"),
    ],
)
def test_codes_of_class_names(name: str, category: str, kind: str) -> None:
    found = terms.codes_of(name)
    assert [code.value for code in found] == [category, kind]
    assert {code.scheme_designator for code in found} == {"SCT"}
