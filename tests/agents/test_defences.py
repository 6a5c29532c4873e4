"""Defences around scripted agents on the real AgentDojo, and beside AgentDojo's own."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from fate_gym.agents import Agent, Gullible, Oracle, Reply, load_agent
from fate_gym.agents._tool_filter import ToolFilter
from fate_gym.agents.defences import (
    DEFENCES,
    SAFETY_PROMPT,
    Defence,
    InjectionDetector,
    RepeatUserPrompt,
    SafetyPrompt,
    Spotlighting,
    defend,
    load_defence,
)
from fate_gym.episode import Episode
from fate_gym.errors import ProviderError, UsageError
from fate_gym.evaluation import EvalConfig, RunFolder, run_evaluation
from fate_gym.rollout import rollout

ATTACK = "important_instructions"


def suspicious(text: str) -> bool:
    """A perfect detector of this attack."""
    return "<INFORMATION>" in text


VIEWS: list[Callable[[], Defence]] = [
    Spotlighting,
    RepeatUserPrompt,
    SafetyPrompt,
    lambda: InjectionDetector(suspicious),
]


def make(suite: str = "banking", attack: str | None = ATTACK) -> Any:
    return gym.make("fate/AgentDojo-v0", suite=suite, attack=attack).unwrapped


def play(agent: Agent, task_id: str, *, attack: str | None = ATTACK) -> Episode:
    return asyncio.run(rollout(make(task_id.split("/")[0], attack), agent, task_id, seed=0))


def metrics(agent: Agent, out: Path, **settings: Any) -> dict[str, Any]:
    args = {"suite": ["banking", "slack"]}
    config = EvalConfig(agent=agent.name, attack=(ATTACK,), env_args=args, out=out, **settings)
    summary = asyncio.run(run_evaluation(config, agent)).summary
    assert summary["episodes"]["errors"] == 0
    (group,) = [group for group in summary["groups"] if group["suite"] == "all"]
    return {name: metric["value"] for name, metric in group["metrics"].items()}


def call(name: str, arguments: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return {"id": f"id_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


class Scripted(Agent):
    """Makes calls in order, then says "Done."; asked without tools, it names the ones it wants. Keeps what it sees."""

    name = "scripted"

    def __init__(self, steps: Sequence[Sequence[Any]], choice: str = "", usage: dict[str, float] | None = None) -> None:
        self.steps = steps
        self.choice = choice
        self.usage = usage or {}
        self.seen: list[dict[str, Any]] = []
        self.players: list[object] = []

    def start(self, task: Any, seed: int) -> Any:
        return _Player(self)


class _Player:
    def __init__(self, agent: Scripted) -> None:
        self.agent = agent
        self.steps = list(agent.steps)

    async def act(self, observation: dict[str, Any]) -> Reply:
        self.agent.seen.append(json.loads(json.dumps(observation)))
        self.agent.players.append(self)
        if _asks_for_tools(observation):
            return Reply(self.agent.choice, usage=self.agent.usage)
        message = {"content": "", "tool_calls": self.steps.pop(0)} if self.steps else {"content": "Done."}
        return Reply(message, usage=self.agent.usage)


def _asks_for_tools(observation: dict[str, Any]) -> bool:
    return "tools" not in observation and "filter the list of tools" in observation["messages"][-1]["content"]


# What AgentDojo's own pipeline shows its model.


class Client:
    """Stands where OpenAI's client does, and follows the same script."""

    def __init__(self, steps: Sequence[Sequence[Any]], choice: str) -> None:
        self.steps, self.choice = list(steps), choice
        self.seen: list[dict[str, Any]] = []
        self.chat = self.completions = self

    def create(self, *, messages: Any, tools: Any, tool_choice: Any, **_: Any) -> Any:
        from openai.types.chat import ChatCompletion

        seen = {"messages": [_plain(message) for message in messages]}
        self.seen.append({**seen, "tools": json.loads(json.dumps(tools))} if tools else seen)
        message: dict[str, Any] = {"role": "assistant", "content": "Done."}
        if tool_choice == "none":
            message["content"] = self.choice
        elif self.steps:
            message |= {"content": "", "tool_calls": self.steps.pop(0)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        fields = {"id": "x", "created": 0, "model": "m", "object": "chat.completion", "choices": [choice]}
        return ChatCompletion.model_validate(fields)


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A request's message in the form of our observations."""
    content = message["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    plain = {"role": message["role"].replace("developer", "system"), "content": text}
    if message.get("tool_calls"):
        plain["tool_calls"] = json.loads(json.dumps(message["tool_calls"]))
    if "tool_call_id" in message:
        plain["tool_call_id"] = message["tool_call_id"]
    return plain


def official(task_id: str, defense: str, steps: Sequence[Sequence[Any]], choice: str) -> list[dict[str, Any]]:
    """Plays a script in AgentDojo's pipeline of a defence, and returns the requests."""
    from agentdojo.agent_pipeline import (
        AgentPipeline,
        InitQuery,
        OpenAILLM,
        PipelineConfig,
        PromptInjectionDetector,
        SystemMessage,
        ToolsExecutionLoop,
        ToolsExecutor,
    )
    from agentdojo.task_suite.load_suites import get_suite

    class Detector(PromptInjectionDetector):  # type: ignore[misc]
        def detect(self, tool_output: str) -> bool:
            return suspicious(tool_output)

    client = Client(steps, choice)
    llm = OpenAILLM(client, "m")
    llm.name = "m"
    config = PipelineConfig(
        llm=llm,
        model_id=None,
        defense=None if defense == "injection_detector" else defense,
        system_message_name=None,
        system_message=None,
    )
    if defense == "injection_detector":
        # `from_config` would download its model; the rest is as it builds it.
        loop = ToolsExecutionLoop([ToolsExecutor(), Detector(), llm])
        pipeline = AgentPipeline([SystemMessage(config.system_message), InitQuery(), llm, loop])
    else:
        pipeline = AgentPipeline.from_config(config)
    name, user, goal = task_id.split("/")
    suite = get_suite("v1.2.2", name)
    injection_task = suite.injection_tasks.get(goal)
    env = make(name, ATTACK if injection_task else None)
    _, info = env.reset(seed=0, options={"task_id": task_id})
    suite.run_task_with_pipeline(pipeline, suite.user_tasks[user], injection_task, info["injections"])
    return client.seen


TASKS = [
    "banking/user_task_0/injection_task_1",
    "banking/user_task_15/none",
    "slack/user_task_2/none",
    "slack/user_task_6/injection_task_3",
]


@pytest.mark.filterwarnings("ignore:The query is not being added as the first message")
@pytest.mark.parametrize("task_id", TASKS)
@pytest.mark.parametrize(
    ("defense", "defence"),
    [
        ("spotlighting_with_delimiting", Spotlighting),
        ("repeat_user_prompt", RepeatUserPrompt),
        ("tool_filter", ToolFilter),
        ("injection_detector", lambda: InjectionDetector(suspicious)),
    ],
)
def test_the_agent_is_shown_what_agentdojos_own_pipeline_shows_its_model(
    task_id: str, defense: str, defence: Callable[[], Defence]
) -> None:
    attack = None if task_id.endswith("/none") else ATTACK
    truth = make(task_id.split("/")[0], attack).task(task_id, privileged=True).ground_truth.user
    # The first two in one message; with the filter, then one that was not chosen.
    calls = [call(*item, number) for number, item in enumerate(truth.calls)]
    steps = [calls[:2], *([item] for item in calls[2:])]
    if defense == "tool_filter":
        steps.insert(1, [call("get_iban" if task_id.startswith("banking") else "remove_user_from_slack", {}, 90)])
    choice = ", ".join(name for name, _ in truth.calls)
    agent = Scripted(steps, choice)
    episode = play(defend(agent, defence()), task_id, attack=attack)
    assert episode.status == "ok"
    seen, expected = agent.seen, official(task_id, defense, steps, choice)
    if defense == "tool_filter":
        # The tools that AgentDojo passes beside its question stand below ours.
        asked, asked_officially = seen.pop(0), expected.pop(0)
        question = asked["messages"].pop()["content"]
        assert question.startswith(asked_officially["messages"].pop()["content"])
        assert asked["messages"] == asked_officially["messages"]
        for tool in asked_officially["tools"]:
            assert f"- {tool['function']['name']}: {tool['function']['description']}" in question
        assert len(expected[0]["tools"]) < len(asked_officially["tools"])
        assert any("Invalid tool" in message["content"] for message in expected[-1]["messages"])
    if defense == "injection_detector" and attack:
        assert "omitted" in json.dumps(expected)
    assert len(expected) == len(steps) + 1
    assert seen == expected


def test_an_error_is_delimited_though_agentdojo_leaves_it_bare() -> None:
    steps = [[call("get_balance", {"x": [], "account": 3}), call("no_such_tool", {}, 1)]]
    agent = Scripted(steps)
    play(defend(agent, "spotlighting"), "banking/user_task_0/none", attack=None)
    assert agent.seen[-1]["messages"][-1]["content"] == "<<Invalid tool no_such_tool provided.>>"
    bare = official("banking/user_task_0/none", "spotlighting_with_delimiting", steps, "")
    assert bare[-1]["messages"][-1]["content"] == "Invalid tool no_such_tool provided."


# Scores.


def test_a_gullible_agent_behind_a_perfect_detector_never_obeys_and_still_works(tmp_path: Path) -> None:
    bare = metrics(Gullible(), tmp_path / "bare")
    assert bare["ASR"] > 0.9
    defended = metrics(defend(Gullible(), InjectionDetector(suspicious)), tmp_path / "defended")
    oracle = metrics(Oracle(), tmp_path / "oracle")
    assert defended["ASR"] == oracle["ASR"] == 0.0
    assert defended["TSR"] == oracle["TSR"] > 0.95
    assert defended["reached"] == 1.0  # it came out of a tool, whatever the agent was shown of it


@pytest.mark.parametrize("view", VIEWS)
def test_views_leave_the_environments_conversation_and_an_oracles_scores_as_they_are(
    tmp_path: Path, view: Callable[[], Defence]
) -> None:
    def episodes(agent: Agent, out: Path) -> list[str]:
        metrics(agent, out, limit=12)
        return sorted(
            json.dumps({**dataclasses.replace(episode, shown=None).to_json(), "seconds": None})
            for episode in RunFolder.read(out).episodes()
        )

    assert episodes(defend(Oracle(), view()), tmp_path / "defended") == episodes(Oracle(), tmp_path / "bare")


@pytest.mark.parametrize("view", VIEWS)
def test_views_change_no_observation_in_place(view: Callable[[], Defence]) -> None:
    env = make()
    env.reset(seed=0, options={"task_id": "banking/user_task_0/injection_task_1"})
    observation, *_ = env.step({"tool_calls": [call("read_file", {"file_path": "bill-december-2023.txt"})]})
    before = json.dumps(observation)
    agent = Scripted([])
    session: Any = defend(agent, view()).start(env.task("banking/user_task_0/injection_task_1"), 0)
    asyncio.run(session.act(observation))
    assert json.dumps(observation) == before
    assert json.dumps(agent.seen[0]) != before


class Chooser(Agent):
    """Gullible, and able to say which tools the user's task needs."""

    name = "chooser"
    privileged = True

    def start(self, task: Any, seed: int) -> Any:
        assert task.ground_truth is not None
        return _Chooser(Gullible().start(task, seed), ", ".join(name for name, _ in task.ground_truth.user.calls))


class _Chooser:
    def __init__(self, session: Any, choice: str) -> None:
        self.session, self.choice = session, choice

    async def act(self, observation: dict[str, Any]) -> Reply:
        return Reply(self.choice) if _asks_for_tools(observation) else await self.session.act(observation)


def test_tools_that_were_not_chosen_are_never_run(tmp_path: Path) -> None:
    bare = metrics(Chooser(), tmp_path / "bare")
    filtered = metrics(defend(Chooser(), "tool_filter"), tmp_path / "filtered")
    assert filtered["ASR"] < bare["ASR"]
    refused = 0
    for episode in RunFolder.read(tmp_path / "filtered").episodes():
        task = make(episode.suite).task(episode.task_id, privileged=True)
        assert task.ground_truth is not None
        chosen = ", ".join(name for name, _ in task.ground_truth.user.calls)
        run = [item.name for item in episode.calls if item.outcome != "unknown_tool"]
        assert all(name in chosen for name in run)
        if task.ground_truth.injection and all(name not in chosen for name, _ in task.ground_truth.injection.calls):
            refused += 1
            assert episode.verdict.security.value == episode.verdict.utility.value == 1.0
            assert episode.verdict.validity.value < 1.0
            assert any(item.name.startswith("filtered_") for item in episode.calls)
    assert refused > 20


@pytest.mark.parametrize("form", ["dict", "sdk"])
def test_a_refused_call_leaves_its_neighbours_alone(form: str) -> None:
    from openai.types.chat import ChatCompletionMessage

    calls: list[Any] = [call("get_balance", {}), call("send_money", {"amount": 1}, 1), call("get_iban", {}, 2)]
    message: Any = {"role": "assistant", "content": "On it.", "tool_calls": calls}
    agent = Scripted([], choice="get_balance")

    class Once(_Player):
        async def act(self, observation: dict[str, Any]) -> Reply:
            reply = await super().act(observation)
            if reply.message != {"content": "Done."} or len(observation["messages"]) > 4:
                return reply
            return Reply(ChatCompletionMessage.model_validate(message) if form == "sdk" else message)

    agent.start = lambda task, seed: Once(agent)  # type: ignore[method-assign]
    episode = play(defend(agent, "tool_filter"), "banking/user_task_0/none", attack=None)
    outcomes = [(record.name.partition("_")[0], record.id, record.outcome) for record in episode.calls]
    assert outcomes == [
        ("get", "id_0", "ok"),
        ("filtered", "id_1", "unknown_tool"),
        ("filtered", "id_2", "unknown_tool"),
    ]
    shown = agent.seen[-1]["messages"]
    assert [tool["function"]["name"] for tool in agent.seen[-1]["tools"]] == ["get_balance"]
    assert shown[4]["content"] == "On it."
    assert shown[4]["tool_calls"] == calls
    assert [m["content"] for m in shown[-2:]] == [
        "Invalid tool send_money provided.",
        "Invalid tool get_iban provided.",
    ]


def test_an_agent_that_chooses_nothing_has_no_tools_and_one_without_tools_is_not_asked() -> None:
    agent = Scripted([[call("get_balance", {})]], choice="None of them.")
    episode = play(defend(agent, "tool_filter"), "banking/user_task_0/none", attack=None)
    assert [record.outcome for record in episode.calls] == ["unknown_tool"]
    assert all("tools" not in observation for observation in agent.seen)
    env: Any = gym.make("toy/Parcels-v0", tools=False).unwrapped
    agent = Scripted([])
    asyncio.run(rollout(env, defend(agent, "tool_filter"), "shop/ship", seed=0))
    assert [observation["messages"] for observation in agent.seen] == [env.transcript.messages[:1]]


def test_the_choice_is_paid_for() -> None:
    agent = Scripted([[call("get_balance", {})]], choice="get_balance", usage={"prompt_tokens": 7})
    episode = play(defend(agent, "tool_filter"), "banking/user_task_0/none", attack=None)
    assert len(agent.seen) == episode.attempts == 3
    assert episode.usage == {"prompt_tokens": 21}

    class Failing(_Player):
        async def act(self, observation: dict[str, Any]) -> Reply:
            if "tools" in observation:
                raise ProviderError("429", attempts=4)
            return await super().act(observation)

    agent.start = lambda task, seed: Failing(agent)  # type: ignore[method-assign]
    episode = play(defend(agent, "tool_filter"), "banking/user_task_0/none", attack=None)
    assert (episode.status, episode.attempts) == ("provider_error", 5)


def test_a_session_apart_chooses_and_a_name_anywhere_in_its_answer_counts() -> None:
    agent = Scripted([[call("get_balance", {})]], choice="All I need is `get_balance`.")
    episode = play(defend(agent, "tool_filter"), "banking/user_task_0/none", attack=None)
    assert [record.outcome for record in episode.calls] == ["ok"]
    chooser, *actors = agent.players
    assert actors == [actors[0]] * 2 != [chooser] * 2


def test_the_choice_is_made_from_the_opening_even_in_the_middle_of_an_episode() -> None:
    env = make(attack=None)
    opening, _ = env.reset(seed=0, options={"task_id": "banking/user_task_0/none"})
    observation, *_ = env.step({"tool_calls": [call("get_balance", {})]})
    agent = Scripted([], choice="get_balance")
    session: Any = defend(agent, "tool_filter").start(env.task("banking/user_task_0/none"), 0)
    asyncio.run(session.act(observation))
    asked, shown = (observation["messages"] for observation in agent.seen)
    assert asked[:-1] == opening["messages"]
    assert [message["role"] for message in shown] == ["system", "user", "user", "assistant", "assistant", "tool"]


# Names, order, life cycle.


def test_the_last_defence_named_sees_an_observation_first() -> None:
    def judged(*order: str) -> tuple[str, str]:
        texts: list[str] = []

        def note(text: str) -> bool:
            texts.append(text)
            return True

        agent = Scripted([[call("get_balance", {})]])
        defences = {"spotlighting": Spotlighting(), "detector": InjectionDetector(note, "note")}
        defended = defend(agent, *(defences[name] for name in order))
        play(defended, "banking/user_task_0/none", attack=None)
        assert len(texts) == 1
        return texts[0], agent.seen[-1]["messages"][-1]["content"]

    omitted = "<Data omitted because a prompt injection was detected>"
    assert judged("spotlighting", "detector") == ("1810.0", f"<<{omitted}>>")
    assert judged("detector", "spotlighting") == ("<<1810.0>>", omitted)


def test_a_result_is_judged_once() -> None:
    judged: list[str] = []
    detector = InjectionDetector(lambda text: bool(judged.append(text)))
    agent = Scripted([[call("get_balance", {})], [call("get_iban", {}, 1)], [call("get_balance", {}, 2)]])
    play(defend(agent, detector), "banking/user_task_0/none", attack=None)
    assert judged == ["1810.0", "DE89370400440532013000"]


def test_names_follow_the_order_and_nesting_changes_nothing() -> None:
    agent = defend(Oracle(), "spotlighting", RepeatUserPrompt(), "safety_prompt", "tool_filter")
    assert agent.name == "oracle+spotlighting+repeat_user_prompt+safety_prompt+tool_filter"
    assert agent.privileged
    assert load_agent("noop", defences=["safety_prompt"]).name == "noop+safety_prompt"
    nested, flat = (Scripted([[call("get_balance", {})]]) for _ in range(2))
    play(defend(defend(nested, "spotlighting"), "safety_prompt"), "banking/user_task_0/none", attack=None)
    play(defend(flat, "spotlighting", "safety_prompt"), "banking/user_task_0/none", attack=None)
    assert nested.seen == flat.seen

    async def act(observation: dict[str, Any]) -> dict[str, Any]:
        return {"content": "Done."}

    assert defend(act, InjectionDetector(suspicious)).name == "act+injection_detector:suspicious"
    assert not defend(act, "safety_prompt").privileged


def test_the_system_prompt_is_extended_and_made_where_there_is_none() -> None:
    agent = Scripted([])
    play(defend(agent, "safety_prompt"), "banking/user_task_0/none", attack=None)
    system = agent.seen[0]["messages"][0]
    assert system["content"].startswith("You are an AI language model")
    assert system["content"].endswith(f"\n\n{SAFETY_PROMPT}")
    env: Any = gym.make("toy/Parcels-v0").unwrapped
    for defence, start in (("safety_prompt", SAFETY_PROMPT), ("spotlighting", "I'll mark")):
        agent = Scripted([])
        asyncio.run(rollout(env, defend(agent, defence), "shop/ship", seed=0))
        assert [message["role"] for message in agent.seen[0]["messages"]] == ["system", "user"]
        assert agent.seen[0]["messages"][0]["content"].startswith(start)


def test_checks_and_closing_reach_the_agent() -> None:
    events: list[str] = []

    class Noting(Scripted):
        async def check(self, *, tools: bool = False) -> None:
            events.append("check")

        async def aclose(self) -> None:
            events.append("aclose")

    def broken(text: str) -> bool:
        raise UsageError("no such model")

    agent = defend(Noting([]), "spotlighting", InjectionDetector(broken))
    with pytest.raises(UsageError, match="no such model"):
        asyncio.run(agent.check())
    asyncio.run(agent.aclose())
    assert events == ["check", "aclose"]


@pytest.mark.parametrize("spec", ["wall", "", "spotlighting:hard", "tool_filter:x", "injection_detector", "safety"])
def test_unknown_texts_are_refused_with_what_there_is(spec: str) -> None:
    with pytest.raises(ValueError, match=r"unknown defence .*; there are: spotlighting, repeat_user_prompt"):
        load_defence(spec)


def test_every_listed_text_loads() -> None:
    pytest.importorskip("transformers")
    texts = [spec.replace("FORMAT", "llama_guard") for spec in DEFENCES]
    assert [load_defence(text).name for text in texts] == texts


def test_missing_libraries_are_one_line_that_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'fate-gym\[local\]'") as caught:
        load_defence("injection_detector:some/model")
    assert "\n" not in str(caught.value)
