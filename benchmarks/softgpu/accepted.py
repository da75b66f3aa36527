"""Findings that are true by the letter of the ISA, and neither our kernels' fault nor one on any hardware."""

from __future__ import annotations

from .engine import Finding, Settings

ELECTED = (
    "Triton lets the elected lane initialise an mbarrier and thread 0 arrive at it, with nothing in between that "
    "orders two lanes. Hardware elects the least lane, which is thread 0; the ISA promises no more than some lane, and "
    "random schedules elect another."
)


def why_accepted(finding: Finding, settings: Settings) -> str:
    """What excuses a finding under these settings; "" if nothing does."""
    if finding.kind == "race: use of an mbarrier after init" and settings.schedule in ("random", "worst"):
        return ELECTED
    return ""
