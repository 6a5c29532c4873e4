"""Configurations that ship with the package; `--config NAME` finds them."""
