"""Patch a model: plan, apply, verify, record and remove."""
