"""Tiny models of every model type, and the check of every clause."""
