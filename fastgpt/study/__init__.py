"""The studies (depth, over-smoothing), the demo, and pictures that teach.

`fastgpt.study.smoothing(hidden)` is the measures of over-smoothing; see `measures.py`.
"""

from .measures import SmoothingMeasures as SmoothingMeasures
from .measures import smoothing as smoothing
