"""Verifiers that more than one benchmark uses."""
