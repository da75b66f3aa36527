"""Property-based tests: any shape, dtype and option that a kernel takes, against float64 within the error budget.

A few examples, always the same, run with the other tests. FASTGPT_FUZZ_EXAMPLES=500 (`make fuzz`) looks for new ones.
"""
