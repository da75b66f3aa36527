"""Findings that are true by the letter of the ISA, and neither our kernels' fault nor one on any hardware."""

from __future__ import annotations

from .engine import Finding, Settings

ELECTED = (
    "Triton lets the elected lane initialise an mbarrier and thread 0 arrive at it, with nothing in between that "
    "orders two lanes. Hardware elects the least lane, which is thread 0; the ISA promises no more than some lane, and "
    "random schedules elect another."
)
UNFENCED = (
    "Where a loop has several products on sm_100, Triton leaves out some of the proxy fences between the wait for a "
    "cp.async and the tcgen05.mma that reads what it copied (the least case is in test_blackwell.py). The copy has "
    "ended long before, and a barrier of the CTA lies between."
)
REASONS = (ELECTED, UNFENCED)


def why_accepted(finding: Finding, settings: Settings) -> str:
    """What excuses a finding under these settings; "" if nothing does."""
    if finding.kind == "race: use of an mbarrier after init" and settings.schedule in ("random", "worst"):
        return ELECTED
    if finding.kind == "no proxy fence" and "tcgen05.mma" in finding.text and "`cp.async.c" in finding.text:
        return UNFENCED
    return ""
