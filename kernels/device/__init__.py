"""Device code that the families share: what `@triton.jit` functions of more than one of them call."""
