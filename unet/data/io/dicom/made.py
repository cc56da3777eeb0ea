"""Made series: a volume written as the files of a CT series of nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.data.io.dicom.library import pydicom
from unet.files import atomic, make_folder

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
NAME = "IM{:04}"
ROOT = "1.2.826.0.1.3680043.8.498."  # of identifiers that pydicom makes for anybody


def write_series(folder: Path, volume: NDArray[np.int16], spacing: tuple[float, float, float], name: str) -> None:
    """Write a volume (slices, rows, columns) in Hounsfield units, `spacing` in mm of the same, as IM0001, IM0002 ...;
    `name` becomes the patient's identifier. The same name gives the same identifiers."""
    library = pydicom()

    def uid(*words: object) -> Any:
        return library.uid.generate_uid(ROOT, entropy_srcs=[name, *map(str, words)])

    make_folder(folder)
    for number, plane in enumerate(volume):
        header = library.Dataset()
        header.SOPClassUID, header.SOPInstanceUID = CT, uid("image", number)
        header.StudyInstanceUID, header.SeriesInstanceUID = uid("study"), uid("series")
        header.FrameOfReferenceUID, header.PositionReferenceIndicator = uid("frame"), ""
        header.PatientName, header.PatientID, header.PatientSex, header.PatientBirthDate = "Made^Case", name, "", ""
        header.StudyDate, header.StudyTime, header.StudyID = "20000101", "120000", "1"
        header.AccessionNumber, header.ReferringPhysicianName, header.Manufacturer = "", "", "unet"
        header.Modality, header.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        header.SeriesNumber, header.AcquisitionNumber, header.InstanceNumber = 1, 1, number + 1
        header.KVP = None
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        half = [mm * (count - 1) / 2 for mm, count in zip(spacing[1:], plane.shape, strict=True)]
        header.ImagePositionPatient = [-half[1], -half[0], number * spacing[0]]
        header.PixelSpacing, header.SliceThickness = list(spacing[1:]), spacing[0]
        header.Rows, header.Columns = plane.shape
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
        header.RescaleSlope, header.RescaleIntercept, header.RescaleType = 1, -1024, "HU"
        header.PixelData = np.clip(plane.astype(np.int32) + 1024, 0, 2**16 - 1).astype("<u2").tobytes()
        header.file_meta = library.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = EXPLICIT
        with atomic(folder / NAME.format(number + 1)) as stream:
            header.save_as(stream, enforce_file_format=True)
