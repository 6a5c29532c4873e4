"""Benchmarks that ship with fate-gym, one package or module each."""
