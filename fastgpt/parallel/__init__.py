"""One model over many devices, on torch's own distributed stack."""
