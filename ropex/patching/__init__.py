"""Patches: planned, applied, checked, recorded and removed."""
