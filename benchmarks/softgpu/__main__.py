"""python -m benchmarks.softgpu: the matrix of cases; see matrix.py."""

import sys

from .matrix import main

if __name__ == "__main__":
    sys.exit(main())
