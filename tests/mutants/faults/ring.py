"""Faults of context parallel: who holds which tokens, what travels round the ring, and how its parts are merged."""

from __future__ import annotations

from ..places import argument, assigned, call, comparison, operation, returned
from ..plant import Mutant

_RING = "tests/fastgpt/parallel/test_ring.py::test_"
_LAYOUT = "tests/fastgpt/parallel/test_ring_layout.py::test_"
_PIECES = "tests/fastgpt/parallel/test_ring_pieces.py::test_"

MUTANTS = ()
