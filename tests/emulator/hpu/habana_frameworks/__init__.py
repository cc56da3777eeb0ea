"""Stand-in for the vendor's package: what a program may use of it, on an emulated device."""

import os as _os


def __autoload() -> None:
    """What an installed bridge does when torch is imported."""
    if _os.environ.get("PT_HPU_AUTOLOAD", "1") == "1":
        import habana_frameworks.torch  # noqa: F401
