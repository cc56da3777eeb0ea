"""Label maps as DICOM-SEG: on the grid of their series, with its patient, study and frame of reference, each segment
with the name and code of its class, and the program and weights that made it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import __version__, host
from unet.data.io.dicom import terms
from unet.data.io.dicom.library import explained, highdicom, pydicom
from unet.data.io.dicom.segmentation import VALUE_TEXT
from unet.data.io.dicom.series import Series
from unet.errors import DataError
from unet.files import atomic

Array = NDArray[Any]
DEFAULT = "ISO 2022 IR 6"  # the character set that an empty name means
UTF8 = "ISO_IR 192"  # the character set of all that is written: the names of the patient and of the classes
SERIES_NUMBER = 9001  # beside those of the scanner
TYPE_2 = (  # what the standard wants to be there, if only empty
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
HEADER = "Export the series again with its whole headers, or type --format nifti."


def write(path: Path, labels: Array, series: Series, names: Mapping[int, str], origin: str) -> None:
    """Write label values (slices, rows, columns), in the order of the series' grid, as binary segments. `names` {value:
    name of the class}, the background first, which is no segment; `origin`: digest of the weights. Frames without a
    voxel are left out; a label map that is empty keeps empty frames, as a segmentation has one frame at least. Atomic.
    Raises DataError."""
    library = highdicom()
    planes = series.grid.planes
    if labels.shape != (len(planes), *planes[0].size):
        raise DataError(f"{path}: a label map of {labels.shape} does not fit {series.name}.", "Report this.")
    values = list(names)[1:]
    with explained(planes[0].path, "cannot be the source of a DICOM-SEG", HEADER):
        placed = series.grid.affine is not None
        between = (series.grid.spacing or (1.0,))[0]
        sources = [_source(source, placed, between) for source in dict.fromkeys(plane.path for plane in planes)]
        codes = library.sr.coding.codes if hasattr(library.sr.coding, "codes") else pydicom().sr.codedict.codes
        if placed and not planes[0].reference:
            host.notice(f"{series.folder}: the series names no frame of reference; the segmentation has one of its own")
        algorithm = library.AlgorithmIdentificationSequence(
            "unet", codes.DCM.ArtificialIntelligence, __version__, parameters={"weights": origin} if origin else None
        )
        segments = [_segment(library, number, value, names[value], algorithm) for number, value in enumerate(values, 1)]
        numbers = np.zeros(labels.shape, np.uint8)
        for number, value in enumerate(values, 1):
            numbers[labels == value] = number
        made = library.seg.Segmentation(
            sources,
            numbers,
            "BINARY",
            segments,
            series_instance_uid=library.UID(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=library.UID(),
            instance_number=1,
            manufacturer="unet",
            manufacturer_model_name="unet",
            software_versions=__version__,
            device_serial_number=origin or "none",
            content_label="SEGMENTATION",
            series_description="Segmentation by unet",
            omit_empty_frames=bool(numbers.any()),
            **_places(library, series),
        )
        made.SpecificCharacterSet = UTF8
        stream = io.BytesIO()
        made.save_as(stream)
    with atomic(path) as target:
        target.write(stream.getbuffer())


def _segment(library: Any, number: int, value: int, name: str, algorithm: Any) -> Any:
    category, kind = terms.codes_of(name)
    made = library.seg.SegmentDescription(
        number, name[:64], category, kind, "AUTOMATIC", algorithm_identification=algorithm
    )
    if value != number:
        made.SegmentDescription = VALUE_TEXT.format(value)
    return made


def _source(path: Path, placed: bool, between: float) -> Any:
    """The header of a source file, with what the standard wants to be there. `placed`: whether it lies in space;
    `between`: mm from slice to slice."""
    header = pydicom().dcmread(path, stop_before_pixels=True, force=True)
    letters = header.get("SpecificCharacterSet")
    if isinstance(letters, Sequence) and not isinstance(letters, str) and not letters[0]:
        header.SpecificCharacterSet = [DEFAULT, *letters[1:]]  # highdicom wants the first; Japan's set has it empty
    for keyword in TYPE_2:
        if keyword not in header:
            setattr(header, keyword, None)
    if placed and not header.get("FrameOfReferenceUID"):
        header.FrameOfReferenceUID = pydicom().uid.generate_uid(entropy_srcs=["frame", str(header.SeriesInstanceUID)])
    if placed and not header.get("SliceThickness") and "SharedFunctionalGroupsSequence" not in header:
        header.SliceThickness = between
    if not placed and "PixelSpacing" in header:  # highdicom does not read back a spacing without a thickness
        del header.PixelSpacing
    return header


def _places(library: Any, series: Series) -> dict[str, Any]:
    """Where the frames lie, as the series has it; nothing for an image without a place in space."""
    if series.grid.affine is None:
        return {}
    planes, spacing = series.grid.planes, series.grid.spacing
    assert spacing is not None
    thickness = planes[0].thickness or spacing[0]
    patient = library.CoordinateSystemNames.PATIENT
    return {
        "pixel_measures": library.PixelMeasuresSequence(spacing[1:], thickness, spacing[0]),
        "plane_orientation": library.PlaneOrientationSequence(patient, planes[0].orientation),
        "plane_positions": [library.PlanePositionSequence(patient, plane.position) for plane in planes],
    }
