"""Bytes of a file, unpacked where it is gzipped. No torch."""

from __future__ import annotations

import zlib
from pathlib import Path

from unet.errors import DataError

CHUNK = 2**17  # bytes read at a time
AGAIN = "Copy the file again from its source, or remove the case."


def cut(path: Path, words: str) -> DataError:
    """The error of a file that is cut short or damaged, with its size."""
    size = path.stat().st_size if path.exists() else 0
    return DataError(f"{path}: cut short or damaged: {words}; the file has {size} bytes.", AGAIN)


def is_packed(path: Path) -> bool:
    """Whether a file is gzipped, whatever its name."""
    with open(path, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


class Unpacked:
    """The bytes of a file, unpacked where it is gzipped (in one member or several), read into given memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self.decoder = zlib.decompressobj(31) if is_packed(path) else None
        self.rest = b""

    def close(self) -> None:
        self.file.close()

    def fill(self, target: memoryview) -> None:
        """Fill `target` with the next bytes. Raises DataError where there are fewer, or where they are damaged."""
        done = 0
        while done < len(target):
            piece = self.read(min(len(target) - done, 8 * CHUNK))
            if not piece:
                raise cut(self.path, "its voxels end too early")
            target[done : done + len(piece)] = piece
            done += len(piece)

    def skip(self, count: int) -> None:
        """Pass over bytes. Raises DataError as `fill` does."""
        while count:
            piece = self.read(min(count, 8 * CHUNK))
            if not piece:
                raise cut(self.path, "its voxels end too early")
            count -= len(piece)

    def finish(self, least: int) -> None:
        """Read on to the check sum, which follows the last byte. Raises DataError where it is missing or wrong, and
        where `least` bytes or more follow that are not 0: voxels that the header does not tell of."""
        rest = 0
        for _ in range(16):  # padding may be longer; its check sum is not worth the time
            piece = self.read(8 * CHUNK)
            rest += len(piece.strip(b"\0"))
            if rest >= least:
                raise DataError(
                    f"{self.path}: {rest} bytes or more follow the voxels that its header tells of: the sizes or the"
                    " type in it are wrong.",
                    "Save the volume again with the header that belongs to it, or remove the case.",
                )
            if not piece:
                break
        else:
            return
        if self.decoder is not None and not self.decoder.eof:
            raise cut(self.path, "its end is missing")

    def read(self, most: int) -> bytes:
        """The next bytes, up to `most`; none at the end of the file."""
        if self.decoder is None:
            return self.file.read(most)
        try:
            while True:
                if self.decoder.eof:
                    self.rest = self.decoder.unused_data.lstrip(b"\0") or self.file.read(CHUNK).lstrip(b"\0")
                    if not self.rest:
                        return b""
                    self.decoder = zlib.decompressobj(31)
                packed = self.rest or self.file.read(CHUNK)
                piece = self.decoder.decompress(packed, most)
                self.rest = self.decoder.unconsumed_tail
                if piece or (not packed and not self.decoder.eof):
                    return piece
        except zlib.error as error:
            raise cut(self.path, f"it cannot be unpacked ({error})") from error
