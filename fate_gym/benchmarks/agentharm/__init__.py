"""AgentHarm: harmful requests to agents with tools (Andriushchenko et al., 2024)."""
