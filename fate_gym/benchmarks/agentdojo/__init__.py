"""AgentDojo: tool use under prompt injection (Debenedetti et al., 2024)."""

from fate_gym.benchmarks.agentdojo import _lazy_agents as _lazy_agents  # Before any module of AgentDojo's is imported.
