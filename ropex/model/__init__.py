"""The rotary tables of a live model."""
