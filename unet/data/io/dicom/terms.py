"""Codes for the names of classes: those of DICOM's own lists for segments where a class has the name of one, else
"tissue". No list is kept here: pydicom has the standard's."""

from __future__ import annotations

import functools
import re
from typing import Any

from unet.data.io.dicom.library import pydicom

# Context groups of segmented properties, by their category.
GROUPS = (("AnatomicalStructure", 7192), ("MorphologicallyAbnormalStructure", 7194), ("Tissue", 7191))
SPELLED = {"tumor": "neoplasm", "cancer": "neoplasm"}


def codes_of(name: str) -> tuple[Any, Any]:
    """(category, type) of a class: codes of SNOMED CT."""
    sct = pydicom().sr.codedict.codes.SCT
    words = _words(name)
    for category, group in GROUPS:
        if found := _known(group).get(words):
            return getattr(sct, category), found
    return sct.Tissue, sct.Tissue


def _words(name: str) -> tuple[str, ...]:
    """The words of a name without the plural, in American spelling, sorted."""
    found = [re.sub("our$", "or", word.removesuffix("s")) for word in re.findall(r"[a-z]+", name.lower())]
    return tuple(sorted(SPELLED.get(word, word) for word in found))


@functools.cache
def _known(number: int) -> dict[tuple[str, ...], Any]:
    """{words of the meaning: its code} of a context group."""
    group = getattr(pydicom().sr.codedict.codes, f"cid{number}")
    found = [getattr(group, name) for name in group.dir()]
    return {_words(code.meaning): code for code in found if code.scheme_designator == "SCT"}
