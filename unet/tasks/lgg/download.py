"""Where the kaggle set "LGG MRI Segmentation" lies, and on what terms. No torch.

Its host wants an account, so the archive is loaded with the user's own key, or by the user.
"""

from __future__ import annotations

import re

from unet.data.download.sources import Archive, Remote, Source

ADDRESS = "https://www.kaggle.com/api/v1/datasets/download/mateuszbuda/lgg-mri-segmentation"
PATIENTS = 110
SLICE = re.compile(r"(?:^|/)kaggle_3m/((TCGA_\w{1,40})/\2_\d{1,4}(?:_mask)?\.tif)$")


def place(member: str) -> str | None:
    """Slices and masks; the archive holds a second copy of all patients, deeper."""
    found = SLICE.search(member)
    return found[1] if found else "data.csv" if member.endswith("kaggle_3m/data.csv") else None


SOURCE = Source(
    title=f"LGG MRI Segmentation (kaggle): {PATIENTS} patients of TCGA-LGG",
    home="https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation",
    licence="CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/)",
    terms=(
        "Name the makers; no commercial use; what is made from it is shared under the same licence.",
        "Publications cite Buda et al. 2019 (Computers in Biology and Medicine 109) and Mazurowski et al. 2017"
        " (Journal of Neuro-Oncology 133).",
    ),
    archive=Archive(
        Remote("lgg-mri-segmentation.zip", (ADDRESS,), 750_000_000), place, unpacked=1_050_000_000, folders=PATIENTS
    ),
    account=(
        "kaggle gives it to accounts only. With its own program, then from the file:",
        "  kaggle datasets download -d mateuszbuda/lgg-mri-segmentation",
        "  python -m unet download lgg --from ./lgg-mri-segmentation.zip --accept-licence",
        "or with the key that your account page there gives you as kaggle.json:",
        "  python -m unet download lgg --credentials ~/.kaggle/kaggle.json --accept-licence",
    ),
)
