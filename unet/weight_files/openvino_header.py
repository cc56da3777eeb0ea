"""The metadata of an OpenVINO model: an .xml file, which holds the network and this program's metadata as JSON, and
beside it the weights, a .bin file of the same name. Read without OpenVINO."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from unet.files import explain, require_regular
from unet.weight_files.safetensors_header import damaged

PLACE = ("unet", "metadata")  # within rt_info
LARGEST = 2**26  # bytes of an .xml file; a network of 40 layers takes some 100,000


def read(path: Path) -> str:
    """This program's metadata, JSON; empty where there is none. Raises DamagedError for another file than a model."""
    try:
        size = require_regular(path).stat().st_size
        text = path.read_bytes() if size <= LARGEST else b""
    except OSError as error:
        raise explain(error, path) from error
    if size > LARGEST:
        raise damaged(path, f"no model of OpenVINO ({size} bytes; at most {LARGEST})")
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise damaged(path, "no model of OpenVINO (it defines entities)")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise damaged(path, f"cut short, or damaged ({str(error)[:80]})") from error
    if root.tag != "net":
        raise damaged(path, f"no model of OpenVINO (it is of <{root.tag[:20]}>)")
    found = root.find("/".join(("rt_info", *PLACE)))
    return "" if found is None else found.get("value", "")


def weights_of(path: Path) -> Path:
    """The file of the weights."""
    return path.with_suffix(".bin")
