"""Where the ISBI 2012 set of electron micrographs lies, and on what terms. No torch.

Address and notice: the page of the challenge at imagej.net, which took over the files when the challenge's own server
was switched off.
"""

from __future__ import annotations

from unet.data.download.sources import Archive, Remote, Source

FILES = ("train-volume.tif", "train-labels.tif", "test-volume.tif")


def place(member: str) -> str | None:
    """The three stacks, whatever folder of the archive they lie in."""
    name = member.rpartition("/")[2].lower()
    return name if name in FILES and "__macosx" not in member.lower() else None


SOURCE = Source(
    title="ISBI 2012 challenge: segmentation of neuronal structures in EM stacks",
    home="https://imagej.net/events/isbi-2012-segmentation-challenge",
    licence="none by name: free for making and testing segmentation software that is not commercial",
    terms=(
        "Any other use needs the consent of the makers.",
        "Publications cite Cardona et al. 2010 (PLoS Biology 8, e1000502) and Arganda-Carreras et al. 2015"
        " (Frontiers in Neuroanatomy 9, 142).",
    ),
    archive=Archive(
        Remote("ISBI-2012-challenge.zip", ("https://downloads.imagej.net/ISBI-2012-challenge.zip",), 15_000_000),
        place,
        unpacked=24_000_000,
        needed=FILES,
    ),
)
