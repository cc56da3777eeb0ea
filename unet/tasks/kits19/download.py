"""Where the KiTS19 set lies, and on what terms. No torch.

Addresses: labels and the list of cases from the challenge's repository; scans from the storage that its own script
names, or from the copy that its maker keeps at Hugging Face.
"""

from __future__ import annotations

from unet.data.download.sources import Remote, Source
from unet.tasks.kits19.dataset import UNLABELLED

LABELS = "https://raw.githubusercontent.com/neheller/kits19/master/data/case_{0:05d}/segmentation.nii.gz"
LIST = "https://raw.githubusercontent.com/neheller/kits19/master/data/kits.json"
SCANS = "https://kits19.sfo2.digitaloceanspaces.com/master_{0:05d}.nii.gz"
COPY = (  # a fixed revision: it cannot change
    "https://huggingface.co/datasets/neheller/KiTS-Challenge-Imaging/resolve/"
    "65f1f295873a326230153c7e1de0c7dba10f0b29/images/case_{0:05d}.nii.gz"
)
SCAN, LABEL, LISTED = 95_000_000, 400_000, 500_000  # bytes: 20 GB of 210 cases


def files(cases: int | None) -> list[Remote]:
    """The list of cases, then label and scan of each case that has a label."""
    found = [Remote("kits.json", (LIST,), LISTED)]
    for number in range(min(cases or UNLABELLED, UNLABELLED)):
        folder = f"case_{number:05d}"
        found += [
            Remote(f"{folder}/segmentation.nii.gz", (LABELS.format(number),), LABEL),
            Remote(f"{folder}/imaging.nii.gz", (SCANS.format(number), COPY.format(number)), SCAN),
        ]
    return found


SOURCE = Source(
    title="KiTS19: kidney tumor segmentation challenge, 210 CT scans with labels",
    home="https://github.com/neheller/kits19",
    licence="CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/)",
    terms=(
        "Name the makers; no commercial use; what is made from it is shared under the same licence.",
        "Publications cite Heller et al. 2019 (arXiv:1904.00445).",
    ),
    files=files,
)
