"""GELU-FFN: one activation less in memory, and no pass over the hidden layer where fusing it pays."""
