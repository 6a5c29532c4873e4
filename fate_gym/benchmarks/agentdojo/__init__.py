"""AgentDojo: tool use under prompt injection (Debenedetti et al., 2024)."""
