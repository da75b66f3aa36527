"""What one runs beside training: the demo, the check of the kernels, the memory that a step needs."""
