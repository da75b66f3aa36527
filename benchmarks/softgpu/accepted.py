"""Findings that are true by the letter of the ISA, and neither our kernels' fault nor one on any hardware."""

from __future__ import annotations

import re

from .engine import Finding, Settings

ELECTED = (
    "Triton lets the elected lane initialise an mbarrier and thread 0 arrive at it, with nothing in between that "
    "orders two lanes. Hardware elects the least lane, which is thread 0; the ISA promises no more than some lane, and "
    "random schedules elect another."
)
INVALIDATED = (
    "Triton invalidates an mbarrier and lets a later bulk copy write where it was, with a barrier of the CTA and no "
    "proxy fence in between. To invalidate is an ordinary access, which has ended when the copy is issued."
)
REASONS = (ELECTED, INVALIDATED)
_COPY_OVER_MBARRIER = re.compile(r"cp\.async\.bulk\.tensor\S* \[.*wrote by PTX line \d+: `(@%p\d+ )?mbarrier\.inval")


def why_accepted(finding: Finding, settings: Settings) -> str:
    """What excuses a finding under these settings; "" if nothing does."""
    if finding.kind == "race: use of an mbarrier after init" and settings.schedule in ("random", "worst"):
        return ELECTED
    if finding.kind == "no proxy fence" and _COPY_OVER_MBARRIER.search(finding.text):
        return INVALIDATED
    return ""
