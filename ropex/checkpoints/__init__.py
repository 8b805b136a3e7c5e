"""Checkpoints: found, loaded, written and saved with their strategy."""
