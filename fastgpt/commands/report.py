"""`fastgpt report`: a run's report, or several runs compared, as one page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..base.settings import SettingError

if TYPE_CHECKING:
    from ..pages.page import Page
    from ..train.run_record import Run

COMPARISON = "comparison.html"


@dataclass
class Command:
    """Write the report of a training run, or one page that compares several: losses, final figures, settings."""

    runs: Positional[Annotated[tuple[str, ...], arg(metavar="RUN")]]
    """Folders of runs: runs/<name>. Several are compared."""
    out: str | None = None
    """Page to write; <run>/report.html of one run, comparison.html of several, if not given."""

    def run(self) -> int:
        from ..base import files
        from ..train import run_record

        if not self.runs:
            raise SettingError("report", "runs", "", "must be folders of runs; give runs/<name>")
        several = len(self.runs) > 1
        path = self._checked(Path(self.runs[0]))
        try:
            page = self._page([run_record.read(Path(folder)) for folder in self.runs])
            files.make_folder(path.parent)
            page.save(path)
        except KeyboardInterrupt:
            kept = f"{path} is as it was" if os.path.lexists(path) else "nothing was written"
            raise KeyboardInterrupt(kept) from None
        print(f"{path}{f': {len(self.runs)} runs compared' if several else ''}")
        return 0

    def _page(self, runs: list[Run]) -> Page:
        from ..study import compare_runs
        from ..train import run_report
        from . import _status

        with _status.status() as say:
            say("reading measurements")
            if len(runs) > 1:
                return compare_runs.page_of(compare_runs.named(runs))
            (run,) = runs
            return run_report.page_of(run)

    def _checked(self, first: Path) -> Path:
        """Where the page goes, if it can, and nothing of anybody else's is there."""
        from ..base.files import check_folder, instead_of_file
        from ..pages.page import is_ours
        from ..train.run_record import GENERATOR, REPORT
        from ._outputs import why_not

        default = first / REPORT if len(self.runs) == 1 else Path(COMPARISON)
        path = default if self.out is None else Path(self.out)
        what = instead_of_file(path)
        if what is None and os.path.lexists(path) and not is_ours(path, GENERATOR):
            what = "a file that `fastgpt report` did not write"
        if self.out is None:
            if what is not None:
                need = f"cannot be written to {path}: that is {what}; choose another page: --out FILE.html"
                raise SettingError("report", "runs", " ".join(self.runs), need)
            if (first / "metrics.jsonl").exists() and (why := why_not(path)):  # in a run: another folder stays as it is
                need = f"cannot be written to {path}: {why}: --out FILE.html"
                raise SettingError("report", "runs", " ".join(self.runs), need)
            return path
        if what is not None:
            raise SettingError("report", "out", self.out, f"is {what}; choose another name, e.g. {COMPARISON}")
        try:
            check_folder("report", "out", path.parent)
        except SettingError as error:
            need = f"cannot be written: {error.value} {error.need}"
            raise SettingError("report", "out", self.out, need) from None
        if why := why_not(path):
            raise SettingError("report", "out", self.out, f"cannot be written: {why}")
        return path
