"""Where verifiers finds our environments: it takes plugins from modules of one name, without dots.

vf-eval fate_gym_verifiers --env.taskset.env fate/AgentDojo-v0 ...
"""

from fate_gym.integrations.verifiers import FateEnv, FateHarness, FateTaskset

__all__ = ["FateEnv", "FateHarness", "FateTaskset"]
