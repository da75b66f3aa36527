"""Converters between our state dict and others, and the one-call patch of foreign models."""
