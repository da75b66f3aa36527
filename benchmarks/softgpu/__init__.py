"""Executes compiled kernels, the PTX that Triton emits, on a CPU, and checks every access. See docs/softgpu.md."""
