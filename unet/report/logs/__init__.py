"""Logs of other programs, and of this one from before it had run folders, read as runs."""

from unet.report.logs.find import read_logs

__all__ = ["read_logs"]
