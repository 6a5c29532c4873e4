"""Agents: who acts in an episode."""
