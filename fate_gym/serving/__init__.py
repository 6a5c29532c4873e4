"""Asking model servers: what agents and judges share."""
