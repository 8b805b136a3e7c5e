"""The attention function of a patched model."""
