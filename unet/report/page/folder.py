"""The folder of a page: which files in it the program wrote. Others are never overwritten or removed, nor is another
page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from unet import files, locks
from unet.errors import UnetError, UsageError
from unet.report.run import is_run

LIST = "report-files.json"
SCHEMA = {"files": {str: str}}  # name -> digest


class PageFolder:
    """The folder that holds a page, with the list of the files that the program wrote there."""

    def __init__(self, page: Path) -> None:
        self.page, self.path = page, page.parent
        inside = Path(os.path.realpath(self.path))
        if found := next((folder for folder in (inside, *inside.parents) if is_run(folder)), None):
            raise UsageError(
                f"{page.absolute()} would lie in {found}, which is the folder of a run: reading changes nothing there.",
                "Name a page elsewhere: --page report/index.html",
            )
        if page.suffix.lower() not in (".html", ".htm"):
            raise UsageError(
                f"--page {page} is no name of a page: it ends in {page.suffix or 'nothing'}, not in .html.",
                f"Type --page {page / 'index.html'}",
            )

    def own(self) -> dict[str, str]:
        """name -> digest of the files in the list."""
        place = self.path / LIST
        if not os.path.lexists(place):
            return {}
        found: dict[str, str] = files.read_json(place, SCHEMA, "Name another --page, or remove this list.")["files"]
        return found

    def require_free(self, names: Mapping[str, bytes], own: Mapping[str, str]) -> None:
        """Raise UsageError if a file of these names is there that the program did not write, or that was changed, or if
        the folder holds another page, whose pictures and tables have the same names."""
        other = next((name for name in own if name.endswith((".html", ".htm")) and name not in names), None)
        if other and (self.path / other).is_file():
            raise UsageError(
                f"{self.path.absolute()} holds another page, {other}, with its pictures and tables.",
                f"Name a page in a folder of its own: --page {self.path / self.page.stem}/index.html",
            )
        for name in names:
            path = self.path / name
            if os.path.lexists(path) and not self._is_own(name, own):
                why = "was changed since this program wrote it" if name in own else "was not written by report"
                raise UsageError(
                    f"{path.absolute()} exists and {why}: it is not overwritten.",
                    f"Move it elsewhere, or name another page: --page {self.path.with_name('report-2')}/index.html",
                )

    def _is_own(self, name: str, own: Mapping[str, str]) -> bool:
        path = self.path / name
        return name in own and not path.is_symlink() and path.is_file() and files.digest_files(path) == own[name]

    def write(self, page: str, beside: Mapping[str, bytes]) -> None:
        """Write the files beside the page, then the page; remove those of an earlier page that are no longer there."""
        content = {**beside, self.page.name: page.encode()}
        files.make_folder(self.path)
        with locks.hold(self.path / ".report.lock"):
            own = self.own()
            self.require_free(content, own)
            digests = {name: files.digest(each) for name, each in content.items()}
            gone = [name for name in own if name not in content]
            # both, until all is written: a file is in the list before it is there
            self._list({**own, **{name: digest for name, digest in digests.items() if not (self.path / name).exists()}})
            for name, each in content.items():
                files.write_bytes(self.path / name, each)
                own[name] = digests[name]
            for name in gone:
                try:
                    if self._is_own(name, own):
                        files.path_inside(self.path, name).unlink()
                except UnetError:
                    continue
            self._list(digests)

    def _list(self, digests: Mapping[str, str]) -> None:
        files.write_json(self.path / LIST, {"files": dict(digests)})
