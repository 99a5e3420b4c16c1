"""Backends: check what a target can do and emit its package."""
