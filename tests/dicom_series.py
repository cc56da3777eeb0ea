"""Made DICOM series of every kind that scanners and archives give: oblique, tilted, with gaps, doubled, enhanced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
SECRET = "Doe^Jane"  # the patient's name: it must never be printed
ID = "ID-4711"
SPACING = (2.5, 0.8, 0.7)
OBLIQUE = tuple(
    np.round(np.linalg.qr(np.array([[0.9, 0.2, 0.1], [-0.1, 0.95, 0.3], [0.2, -0.3, 0.9]]))[0].T[:2], 8).ravel()
)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
Change = Callable[[Dataset, int], Any]


def values(slices: int = 6, rows: int = 12, columns: int = 10, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 2000, (slices, rows, columns)).astype(np.uint16)


def header(name: str, number: int, plane: Any, modality: str = "CT") -> Dataset:
    """A header as a scanner writes it. `name`: of the series."""
    made = Dataset()
    made.SOPClassUID = MR if modality == "MR" else CT
    made.SOPInstanceUID = generate_uid(entropy_srcs=[name, str(number)])
    made.StudyInstanceUID, made.SeriesInstanceUID = (
        generate_uid(entropy_srcs=["study"]),
        generate_uid(entropy_srcs=[name]),
    )
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = generate_uid(entropy_srcs=["frame"]), ""
    made.PatientName, made.PatientID, made.PatientSex, made.PatientBirthDate = SECRET, ID, "F", "19510203"
    made.StudyDate, made.StudyTime, made.StudyID, made.AccessionNumber = "20190405", "101112", "77", "A-99"
    made.ReferringPhysicianName, made.Manufacturer, made.SeriesDescription = "Roe^Richard", "maker", f"of {SECRET}"
    made.Modality, made.ImageType, made.SeriesNumber = modality, ["ORIGINAL", "PRIMARY", "AXIAL"], 1
    made.InstanceNumber, made.AcquisitionNumber, made.KVP = number + 1, 1, 120
    made.Rows, made.Columns = plane.shape
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
    made.RescaleSlope, made.RescaleIntercept, made.RescaleType = 1, -1024, "HU"
    if modality == "MR":
        for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType", "KVP"):
            delattr(made, keyword)
        made.ScanningSequence, made.SequenceVariant, made.ScanOptions, made.MRAcquisitionType = "GR", "NONE", "", "3D"
        made.EchoTime, made.EchoTrainLength = 3.5, 1
    made.PixelData = plane.astype("<u2").tobytes()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def series(
    folder: Path,
    volume: Any = None,
    name: str = "one",
    orientation: tuple[float, ...] = AXIAL,
    spacing: tuple[float, ...] = SPACING,
    tilt: float = 0.0,
    change: Change = lambda made, number: None,
    modality: str = "CT",
    places: Any = None,
) -> Any:
    """Write a series; `tilt`: mm that each slice is shifted along its columns; `places`: of the slices, in slices. The
    files lie in another order than the slices. Returns the affine (slice, row, column) -> mm, RAS."""
    volume = values() if volume is None else volume
    folder.mkdir(parents=True, exist_ok=True)
    along, down = np.array(orientation).reshape(2, 3)
    normal = np.cross(along, down)
    origin = np.array([-31.25, 18.5, 7.75])
    order = np.random.default_rng(len(volume)).permutation(len(volume))
    for number, plane in enumerate(volume):
        made = header(name, number, plane, modality)
        place = number if places is None else places[number]
        position = origin + place * spacing[0] * normal + number * tilt * down
        made.ImagePositionPatient = [float(f"{value:.8f}") for value in position]
        made.ImageOrientationPatient, made.PixelSpacing = list(orientation), list(spacing[1:])
        made.SliceThickness = 1.0  # thinner than the spacing: it must not be taken for it
        change(made, number)
        made.save_as(folder / f"{name}{order[number]:04}", enforce_file_format=True)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = normal * spacing[0], down * spacing[1], along * spacing[2]
    affine[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def enhanced(folder: Path, classic: Path, name: str = "enhanced.dcm") -> Path:
    """One multi-frame file of a classic series, made by highdicom."""
    import highdicom.legacy

    sources = [pydicom.dcmread(path) for path in sorted(classic.iterdir())]
    kind = {
        "CT": highdicom.legacy.LegacyConvertedEnhancedCTImage,
        "MR": highdicom.legacy.LegacyConvertedEnhancedMRImage,
    }[sources[0].Modality]
    made = kind(sources, generate_uid(), 5, generate_uid(), 1)
    folder.mkdir(parents=True, exist_ok=True)
    made.save_as(folder / name)
    return folder / name
