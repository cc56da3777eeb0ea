"""Which files of a folder are DICOM, and what their headers say: found by their content, whatever their names. Voxels
are not read.

A path may end in #NUMBER or #UID: that series of the folder.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unet import host
from unet.data.io.dicom.library import explained, pydicom
from unet.errors import DataError

MOST_FILES = 100_000  # of a folder
LOOKED_AT = 2000  # files of a folder in which a first DICOM file is looked for
LARGEST_HEADER = 2**26  # bytes of one value of a header; longer ones are passed over
ENDINGS = (".dcm", ".dicom", ".ima")
MARK, MARKED = 128, b"DICM"
BARE = (b"\x08\x00", b"\x02\x00")  # how files begin that lack the mark: their first group
PIXELS = (b"\xe0\x7f", b"\x7f\xe0")  # the group of the voxels, in both byte orders
DEFLATED = "1.2.840.10008.1.2.1.99"
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
NO_IMAGES = {  # what is no image, by the class of the object, whatever it holds
    "1.2.840.10008.1.3.10": "DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.481.2": "RT dose",
    "1.2.840.10008.5.1.4.1.1.481.3": "RT structure set",
    "1.2.840.10008.5.1.4.1.1.481.5": "RT plan",
}
HEADER_ALONE = "image without voxels"
TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"),
    *("Modality", "SeriesNumber", "InstanceNumber", "ImageType", "AcquisitionNumber", "AcquisitionTime", "ContentTime"),
    *("Rows", "Columns", "NumberOfFrames", "PixelSpacing", "ImagerPixelSpacing", "ImageOrientationPatient"),
    *("ImagePositionPatient", "SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("EchoNumbers", "EchoTime", "InversionTime", "DiffusionBValue", "TemporalPositionIdentifier", "TriggerTime"),
    *("NominalPercentageOfCardiacPhase", "KVP", "SegmentSequence", "SegmentationType", "SpecificCharacterSet"),
]


@dataclasses.dataclass(frozen=True)
class Instance:
    """A file and its header, without the voxels. `sop_class`: UID of what it is; `pixels`: whether voxels follow."""

    path: Path
    header: Any
    sop_class: str
    pixels: bool

    @property
    def is_segmentation(self) -> bool:
        return self.sop_class in SEGMENTATIONS

    @property
    def is_image(self) -> bool:
        """Whether it is an image with voxels: no segmentation, dose, contour, report or list of files."""
        known = "Rows" in self.header and "Columns" in self.header
        return self.pixels and known and not self.is_segmentation and self.sop_class not in NO_IMAGES

    @property
    def kind(self) -> str:
        """What it is where it is no image, in words."""
        if self.is_segmentation:
            return "segmentation"
        if "Rows" in self.header and not self.pixels:
            return HEADER_ALONE
        return NO_IMAGES.get(self.sop_class, "file without an image")


def parted(path: Path) -> tuple[Path, str]:
    """(the file or folder, the series that is named after #, or "")."""
    name, mark, series = path.name.rpartition("#")
    return (path.with_name(name), series) if mark and name and not os.path.lexists(path) else (path, "")


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its first bytes: the mark DICM, or the form of a header without it. One that cannot
    be opened may be: reading it says what is wrong."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(MARK + 4)
    except OSError:
        return True
    if start[MARK:] == MARKED:
        return True
    bare = start[:2] in BARE and start[3:4] == b"\0"
    return bare and (path.suffix.lower() in ENDINGS or _plausible(start))


def _plausible(start: bytes) -> bool:
    """Whether bytes are the first element of a header: a type of two capitals, or a short length."""
    letters = start[4:6]
    return (letters.isalpha() and letters.isupper()) or 0 < int.from_bytes(start[4:8], "little") <= 64


def walk(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it, sorted; hidden ones, links to folders, and what is no file are left
    out. Raises DataError for more than `MOST_FILES`."""
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or not path.is_file():
                continue
            count += 1
            if count > MOST_FILES:
                raise DataError(f"{folder}: holds more than {MOST_FILES} files.", "Name the folder of one patient.")
            yield path


def holds_dicom(folder: Path, deep: bool = True) -> bool:
    """Whether a folder holds a DICOM file (`deep`: or a folder in it does), among its first files."""
    paths = walk(folder) if deep else (path for path in sorted(folder.iterdir()) if path.is_file())
    return any(is_dicom(path) for path, _ in zip(paths, range(LOOKED_AT), strict=False))


def read_header(path: Path) -> Instance:
    """The header of a file. Raises DataError for a damaged one."""
    library = pydicom()
    with explained(path), open(path, "rb") as stream:
        meta = library.filereader.read_file_meta_info(path) if _is_marked(path) else library.Dataset()
        syntax = str(meta.get("TransferSyntaxUID", ""))
        if syntax == DEFLATED:
            require_inflatable(path)
        header = library.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=TAGS)
        pixels = syntax == DEFLATED or stream.read(2) in PIXELS
        for name in TAGS:  # values are understood here, where a fault names the file
            header.get(name)
    kind = header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""
    return Instance(path, header, str(kind), pixels)


def _is_marked(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(MARK + 4)[MARK:] == MARKED


def require_inflatable(path: Path) -> None:
    """Raise DataError for a deflated file that would fill the memory."""
    most = max(2**28, host.memory()[1] // 4)
    decoder, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with open(path, "rb") as stream:
        stream.seek(MARK + 4)
        group = stream.read(12)  # (0002,0000) UL: the bytes of the group that is not deflated
        stream.seek(MARK + 16 + int.from_bytes(group[8:], "little"))
        while piece := stream.read(2**16):
            while piece:
                total += len(decoder.decompress(piece, 2**22))
                piece = decoder.unconsumed_tail
                if total > most:
                    raise DataError(
                        f"{path}: is packed, and unpacks to more than {host.format_bytes(most)}.",
                        "Export it again, not deflated.",
                    )
