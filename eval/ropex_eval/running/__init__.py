"""A run: its work, its folder and its numbers."""
