"""The rotary part of a config: read, converted and written."""
