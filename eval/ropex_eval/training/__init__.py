"""Measurements during and after training."""
