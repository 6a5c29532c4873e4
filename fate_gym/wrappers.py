"""Wrappers around environments, for the loops and learners that want other rewards and observations.

Each works on one environment, and so inside a vector environment too (`gym.make_vec(..., wrappers=[...])`).
"""

from __future__ import annotations

import json
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from fate_gym.agents.chat_format import as_templates_take
from fate_gym.env import Observation
from fate_gym.rendering import message_text
from fate_gym.rewards import AXES, Scalarization, ScalarizationSpec
from fate_gym.spaces import TextSpace

__all__ = ["ScalarReward", "TextObservation", "TokenObservation", "ValidityPenalty"]

_VALIDITY = AXES.index("validity")


class ScalarReward(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """One float as the reward of the last step, and 0.0 before it, from an environment's reward vector.

    The same as `gym.make(..., scalarization=...)`, for an environment that is there already. The vector stands in
    `info["reward_vector"]`.

    Args:
        env: An environment with a reward vector.
        scalarization: "min", weights, or a function; see `fate_gym.Scalarization`.
    """

    def __init__(self, env: gym.Env[Any, Any], scalarization: ScalarizationSpec = "min") -> None:
        RecordConstructorArgs.__init__(self, scalarization=scalarization)
        super().__init__(env)
        self._scalarize = Scalarization(scalarization)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes one action; see `ToolEnv.step`."""
        vector: Any
        observation, vector, terminated, truncated, info = self.env.step(action)
        if np.shape(vector) != (len(AXES),):
            raise TypeError("ScalarReward wraps an environment with a reward vector; this one gives a number already")
        reward = self._scalarize(np.asarray(vector), info["reward_mask"])
        return observation, reward, terminated, truncated, {**info, "reward_vector": vector}


class ValidityPenalty(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Takes a penalty off the reward of each step whose action was invalid, at once, not at the end of the episode.

    An action is invalid where `info["problem"]` says why. A float loses the penalty as it is, a vector on its validity
    axis, which may then lie below 0.

    Args:
        env: An environment with a reward vector, or with a float (`scalarization`, `ScalarReward`).
        penalty: What an invalid action costs, at least 0.
    """

    def __init__(self, env: gym.Env[Any, Any], penalty: float = 0.1) -> None:
        if not penalty >= 0:
            raise ValueError(f"penalty must be at least 0, got {penalty!r}")
        RecordConstructorArgs.__init__(self, penalty=penalty)
        super().__init__(env)
        self._penalty = penalty
        self._loss = np.zeros(len(AXES), np.float32)
        self._loss[_VALIDITY] = penalty
        # MO-Gymnasium's attribute, which wrappers hand on.
        self.reward_space = gym.spaces.Box(-self._loss, np.ones_like(self._loss))

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes one action; see `ToolEnv.step`."""
        reward: Any
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "problem" in info:
            reward = reward - (self._loss if np.ndim(reward) else self._penalty)
        return observation, reward, terminated, truncated, info


class TokenObservation(gym.ObservationWrapper[Any, Any, Observation], RecordConstructorArgs):
    """Token ids in place of the conversation: what a model is given, by its own chat template, up to its turn.

    An observation is int64, (n,), with n growing from step to step. Actions stay messages.

    Args:
        env: An environment of this package.
        tokenizer: A transformers tokenizer with a chat template.
        **template_args: Further variables of the template, such as `enable_thinking=False`.
    """

    def __init__(self, env: gym.Env[Observation, Any], tokenizer: Any, **template_args: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("this tokenizer has no chat template: give one of a chat model, or set its chat_template")
        RecordConstructorArgs.__init__(self, tokenizer=tokenizer, **template_args)
        super().__init__(env)
        self._tokenizer = tokenizer
        self._template_args = template_args
        self.observation_space = gym.spaces.Sequence(gym.spaces.Discrete(len(tokenizer)), stack=True)

    def observation(self, observation: Observation) -> NDArray[np.int64]:
        """Writes a conversation as token ids."""
        text = self._tokenizer.apply_chat_template(
            as_templates_take(observation["messages"]),
            tools=observation.get("tools"),
            add_generation_prompt=True,
            tokenize=False,
            **self._template_args,
        )
        return np.array(self._tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)


class TextObservation(gym.ObservationWrapper[str, Any, Observation], RecordConstructorArgs):
    """One text in place of the conversation: the tools, one JSON schema a line, then the messages.

    The lines of a message are indented, so that no text in it can begin a message of its own. Actions stay messages.

    Args:
        env: An environment of this package.
    """

    def __init__(self, env: gym.Env[Observation, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.observation_space = TextSpace()

    def observation(self, observation: Observation) -> str:
        """Writes a conversation as text."""
        schemas = [json.dumps(tool["function"], ensure_ascii=False) for tool in observation.get("tools", ())]
        tools = ["\n".join(["[tools]", *(f"    {schema}" for schema in schemas)])] if schemas else []
        return "\n\n".join([*tools, *map(message_text, observation["messages"])])
