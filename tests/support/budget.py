"""The error budget that every kernel is held to: `fastgpt.tools.budget`, which `fastgpt verify` uses as well."""

from fastgpt.tools.budget import (
    GRADIENT,
    OUTPUT,
    Errors,
    Exact,
    assert_all_within_budget,
    assert_within_budget,
    errors,
    exactly,
)

__all__ = [
    "GRADIENT",
    "OUTPUT",
    "Errors",
    "Exact",
    "assert_all_within_budget",
    "assert_within_budget",
    "errors",
    "exactly",
]
