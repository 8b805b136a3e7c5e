"""Find and write checkpoints; load and save a model with its strategy."""
