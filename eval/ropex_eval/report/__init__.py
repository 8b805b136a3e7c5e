"""Presenting results: terminal, tables, plots, pages."""
