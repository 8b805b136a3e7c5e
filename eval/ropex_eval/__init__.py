"""Measure language models beyond the length they were trained at."""
