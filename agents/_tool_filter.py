"""AgentDojo's tool filter for any agent, with refusal in place of trust."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fate_gym.actions import read_action
from fate_gym.agents._defence import Begin, Defence
from fate_gym.chat import EMPTY_ANSWER, Message, ToolSchema
from fate_gym.env import Observation
from fate_gym.episode import Shown
from fate_gym.errors import ProviderError
from fate_gym.rollout import Reply, Session


class ToolFilter(Defence):
    """Has the model choose its tools before it has read any tool's result, and holds it to the choice.

    A session apart is asked first, with AgentDojo's prompt. It is given no tools, since a model that is given some may
    call them instead of answering; their names and descriptions stand below the prompt. (AgentDojo passes them with
    `tool_choice="none"`, which only some APIs know.) As upstream, a tool is chosen if its name stands anywhere in the
    answer, and question and answer stay in the conversation that the agent sees.

    A call to a tool that was not chosen is refused: the reply's call gets a name that no tool has, so the environment
    answers that there is no such tool, never runs it, and counts it against validity. The agent sees the name that
    it had asked for. The episode's trace holds the changed one, `filtered_NUMBER_NAME`: a grader that reads requested
    calls sees no call of the real tool, where AgentDojo's counts one that it has blocked.
    """

    name = "tool_filter"

    def __init__(self) -> None:
        from agentdojo.agent_pipeline.agent_pipeline import TOOL_FILTER_PROMPT

        self._prompt: str = TOOL_FILTER_PROMPT

    def start(self, begin: Begin) -> Session:
        """Begins an episode."""
        return _FilteredSession(self._prompt, begin)


class _FilteredSession:
    def __init__(self, prompt: str, begin: Begin) -> None:
        self._prompt = prompt
        self._begin = begin
        self._session = begin()
        self._exchange: list[Message] = []
        self._refused_names: dict[str, str] = {}

    async def act(self, observation: Observation) -> Reply:
        if "tools" not in observation:
            return await self._session.act(observation)
        choice = None if self._exchange else await self._choose(observation)
        try:
            reply = self._refuse(await self._session.act(self._show(observation)))
        except ProviderError as failure:
            failure.attempts += choice.attempts if choice else 0
            raise
        return _after(choice, reply) if choice else reply

    async def _choose(self, observation: Observation) -> Reply:
        """Asks which tools are needed, and notes question, answer and the names of the others."""
        functions = [tool["function"] for tool in observation["tools"]]
        listed = "\n".join(f"- {function['name']}: {function.get('description', '')}" for function in functions)
        question = {"role": "user", "content": f"{self._prompt}\n\nThe tools:\n{listed}"}
        messages: list[Message] = observation["messages"]
        reply = await self._begin().act({"messages": [*messages[: _opening(messages)], question]})
        answer = read_action(reply.message, turn=0).text
        self._exchange = [
            {"role": "user", "content": self._prompt},
            {"role": "assistant", "content": answer or EMPTY_ANSWER},
        ]
        names = [function["name"] for function in functions if function["name"] not in answer]
        # The number keeps names apart that are cut to the 64 characters that APIs allow.
        self._refused_names = {name: f"filtered_{number}_{name}"[:64] for number, name in enumerate(names)}
        return dataclasses.replace(reply, shown=Shown(asides=(answer,)))

    def _show(self, observation: Observation) -> Observation:
        messages = self._with_asked_names(observation["messages"])
        start = _opening(messages)
        view: Observation = {"messages": [*messages[:start], *self._exchange, *messages[start:]]}
        chosen: list[ToolSchema] = [
            tool for tool in observation["tools"] if tool["function"]["name"] not in self._refused_names
        ]
        # APIs refuse an empty list.
        return {**view, "tools": chosen} if chosen else view

    def _with_asked_names(self, messages: list[Message]) -> list[Message]:
        """Undoes `_refuse` in the conversation: the agent reads the calls that it made."""
        asked_names = {refused: asked for asked, refused in self._refused_names.items()}
        refusals: dict[str, tuple[str, str]] = {}
        restored = []
        for message in messages:
            twin = dict(message)
            if "tool_calls" in message:
                twin["tool_calls"] = []
                for call in message["tool_calls"]:
                    name = call["function"]["name"]
                    asked = asked_names.get(name, name)
                    refusals[call["id"]] = name, asked
                    twin["tool_calls"].append(_renamed(call, asked))
            elif message["role"] == "tool":
                twin["content"] = message["content"].replace(*refusals[message["tool_call_id"]])
            restored.append(twin)
        return restored

    def _refuse(self, reply: Reply) -> Reply:
        # Read as the environment will read it, so that no form of a call slips through.
        requested = read_action(reply.message, turn=0).calls
        if not any(call.name in self._refused_names for call in requested):
            return reply
        fields = reply.message if isinstance(reply.message, Mapping) else reply.message.model_dump()
        calls = [
            _renamed(call, self._refused_names[read.name]) if read.name in self._refused_names else call
            for call, read in zip(fields["tool_calls"], requested, strict=True)
        ]
        return dataclasses.replace(reply, message={**fields, "tool_calls": calls})


def _opening(messages: list[Message]) -> int:
    """Number of messages before the agent's first."""
    return next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))


def _renamed(call: Any, name: str) -> Any:
    return {**call, "function": {**call["function"], "name": name}}


def _after(choice: Reply, reply: Reply) -> Reply:
    """Adds what the choice was and took; a sum with a part unknown is left out."""
    usage = {name: choice.usage[name] + reply.usage[name] for name in reply.usage if name in choice.usage}
    shown = (choice.shown or Shown()) + (reply.shown or Shown())
    return dataclasses.replace(reply, usage=usage, attempts=choice.attempts + reply.attempts, shown=shown)
