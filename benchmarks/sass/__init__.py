"""Reading machine code: parse it, find its loops, count what they cost. `python -m benchmarks.sass --help`."""
