"""`ToolEnv`: the one episode loop of every benchmark."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
import marshal
from collections.abc import Mapping
from typing import Any, Self, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fate_gym._plain import replace_surrogates, to_json
from fate_gym.actions import TOO_LONG, RequestedCall, Turn, read_action
from fate_gym.benchmark import Benchmark, World, load_benchmark
from fate_gym.chat import Json, Message, ToolSchema, copy_messages
from fate_gym.delivery import delivered
from fate_gym.errors import FateGymError, JudgeError, SnapshotError
from fate_gym.pickling import check_picklable, described
from fate_gym.rendering import EpisodeView
from fate_gym.rewards import AXES, AxisVerdict, RewardVector, Scalarization, ScalarizationSpec, Verdict
from fate_gym.snapshots import fingerprint, pack, unpack
from fate_gym.spaces import ActionSpace, ObservationSpace
from fate_gym.task import Purpose, Task, log_terms
from fate_gym.transcript import WRONG_CALLS, CallRecord, Outcome, Status, Transcript
from fate_gym.verifiers.validity import RULE, call_identity, verify_validity

Observation = dict[str, Any]
Reward = NDArray[np.float32] | float
Step = tuple[Observation, Reward, bool, bool, dict[str, Any]]

_NOT_SCORED = Verdict.unscored("not over")
_PROBLEM_LENGTH = 300


class ToolEnv(gym.Env[Observation, Any]):
    """Multi-step tool-use episodes with a reward vector over `fate_gym.AXES`.

    An observation is `{"messages": [...], "tools": [...]}` in OpenAI's format; an action is an assistant message (see
    `step`). `step` never raises on an action, and no action leaves an episode unscored: what is malformed counts
    against validity and is answered by a message that says what was wrong.

    Environments can be pickled and copied with `copy.deepcopy` at any moment, in the middle of an episode too.

    A message without tool calls ends the episode, with text or without, as in AgentDojo and Inspect; one that tried to
    call a tool and could not be read is answered, and the episode goes on. `max_turns` counts tool rounds, as AgentDojo
    does: the calls of the message after the last round are recorded, not run, and the episode is truncated.
    `max_messages` counts the whole conversation, opening included, as Inspect does: the calls of a message still run,
    and the episode is truncated where the agent would be asked again. So it is where its record is full (`MAX_SIZE` of
    `fate_gym.transcript`).

    Args:
        benchmark: A `Benchmark`, or "module:Class" of one, which is then made with `options`.
        max_turns: Tool rounds before truncation.
        max_messages: Messages in the conversation before truncation; None for no such limit.
        scalarization: None for the vector, float32 (4,); or "min", weights or a function (see `Scalarization`) for a
            float reward, with the vector in `info["reward_vector"]`.
        render_mode: None; "ansi" for `render()` to give the episode as text, "html" as what a notebook draws.
        purpose: "evaluation" or "training"; "training" raises where the benchmark's authors ask not to train on it.
        system_prompt: Replaces the benchmark's own; "" for none.
        verbatim: Whether the text of an action counts as it is written, with thoughts and calls written as text. What
            others recorded was graded so; a model that is asked today is not.
        **options: Options of the benchmark.

    Raises:
        FateGymError: `purpose="training"` on a benchmark that may not be trained on.
        UsageError: An option is unknown to the benchmark, or one that it needs is missing.
        ValueError: An argument or option has a value that makes no sense.
    """

    metadata = {"render_modes": ["ansi", "html"], "render_fps": 1}  # noqa: RUF012 (Gymnasium's own convention)
    reward_names = AXES

    def __init__(
        self,
        benchmark: str | Benchmark,
        *,
        max_turns: int = 15,
        max_messages: int | None = None,
        scalarization: ScalarizationSpec | None = None,
        render_mode: str | None = None,
        purpose: Purpose = "evaluation",
        system_prompt: str | None = None,
        verbatim: bool = False,
        **options: Any,
    ) -> None:
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        if max_messages is not None and max_messages < 1:
            raise ValueError(f"max_messages must be at least 1, got {max_messages}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None, 'ansi' or 'html', got {render_mode!r}")
        if purpose not in ("evaluation", "training"):
            raise ValueError(f"purpose must be 'evaluation' or 'training', got {purpose!r}")
        self.benchmark = load_benchmark(benchmark, options, beside=_ARGUMENTS)
        if purpose == "training" and not self.benchmark.data_policy.training:
            raise FateGymError(f"not to be trained on: {self.benchmark.data_policy.note}")
        log_terms(self.benchmark.data_policy)
        self.max_turns = max_turns
        self.max_messages = max_messages
        self.purpose = purpose
        self.system_prompt = system_prompt
        self.verbatim = verbatim
        self.render_mode = render_mode
        self.action_space = ActionSpace()
        self.observation_space = ObservationSpace()
        self.reward_space = gym.spaces.Box(0.0, 1.0, (len(AXES),), np.float32)
        self._scalarize = None if scalarization is None else Scalarization(scalarization)
        self._fingerprint = fingerprint(self.benchmark, max_turns, max_messages, verbatim)
        self._task_ids = frozenset(self.benchmark.tasks)
        self._task: Task | None = None
        self._problem: str | None = None
        self._failure: BaseException | None = None
        self._packed_from: list[ToolSchema] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The ids of the tasks, in the order of the benchmark."""
        return self.benchmark.tasks

    @property
    def transcript(self) -> Transcript:
        """The record of the episode so far."""
        self._require_task()
        return self._transcript

    @property
    def failure(self) -> BaseException | None:
        """What a benchmark or a judge raised so that the last episode is unscored; None where nothing did.

        A judge that says of itself that it cannot be asked has raised nothing.
        """
        return self._failure

    def task(self, task_id: str, *, privileged: bool = False) -> Task:
        """Returns the description of a task; with its ground truth if `privileged`.

        Raises:
            ValueError: There is no such task.
        """
        self._check_task_id(task_id)
        task = self.benchmark.task(task_id)
        if privileged:
            task = dataclasses.replace(task, ground_truth=self.benchmark.ground_truth(task_id))
        return task

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Picks the task where `options` names none.
            options: `{"task_id": ...}`, one of `tasks`; no other key.

        Returns:
            The observation, and an info with `task_id`, `mode`, `injections` (vector -> text) and `data_policy`.

        Raises:
            TypeError: `options` is not a mapping.
            ValueError: There is no such task, or `options` holds another key.
        """
        task_id = self._requested_task(options)
        super().reset(seed=seed)
        if task_id is None:
            task_id = self.tasks[int(self.np_random.integers(len(self.tasks)))]
        episode_seed = int(self.np_random.integers(2**31) if seed is None else seed)
        world = self.benchmark.open(task_id, episode_seed)
        self._begin(task_id, episode_seed, world, Transcript(self._opening(world)), rounds=0)
        task = self._require_task()
        info = self._info()
        info["injections"] = dict(world.injections)
        info["data_policy"] = self.benchmark.data_policy
        info["mode"] = task.mode
        return self._observation(), info

    def step(self, action: Any) -> Step:
        """Takes one action, which is an assistant message.

        Args:
            action: A message (a dict, an SDK's object, or a string, which is a final answer); or the whole reply that
                a client returned, a chat completion, of which the first choice counts, or a Responses object.

        Returns:
            Observation, reward (zeros before the end), terminated, truncated, and an info with `status` and
            `reward_mask`, at the end also `verdict` (a `Verdict`) and `ended`. Where the action was invalid,
            `problem` says why.

        Raises:
            gymnasium.error.ResetNeeded: No episode is running: call `reset` first.
        """
        transcript = self._running()
        turn = self._take(action, transcript)
        if not turn.calls and not turn.attempted:
            return self._end("answer", truncated=False)
        if self._rounds == self.max_turns:
            self._decline_calls(turn, f"Not run: the limit of {self.max_turns} tool rounds is reached.")
            return self._end("max_turns", truncated=True)
        self._rounds += 1
        if not turn.calls:
            content = f"Your last message could not be used. {turn.problem} Call a tool, or answer in text."
            transcript.add({"role": "user", "content": content})
        for position, call in enumerate(turn.calls):
            if transcript.full:
                self._decline_calls(turn, "Not run: the record of the episode is full.", start=position)
                return self._end("max_size", truncated=True)
            try:
                self._run(call)
            except Exception as error:
                reason = f"the world failed: {type(error).__name__}: {error}"
                self._decline_calls(turn, "Not run: the environment failed.", start=position)
                return self._fail("env_error", reason, error)
        if self._world.finished:
            return self._end("finished", truncated=False)
        if self.max_messages is not None and len(transcript.messages) >= self.max_messages:
            return self._end("max_messages", truncated=True)
        return self._observation(), self._reward(), False, False, self._info()

    def truncate(self, reason: str, action: Any = None) -> Step:
        """Ends the episode from outside (no budget left, context overflow) and scores it as it is.

        Args:
            reason: Stands in `info["ended"]`.
            action: The agent's last message, whose calls are recorded and not run; None if there is none.

        Raises:
            gymnasium.error.ResetNeeded: No episode is running.
        """
        transcript = self._running()
        self._problem = None
        if action is not None:
            self._decline_calls(self._take(action, transcript), "Not run: the episode ended here.")
        return self._end(reason, truncated=True)

    def render(self) -> str | None:
        """Returns the episode as text, with `render_mode="ansi"`, or as HTML, which a notebook draws, with "html"."""
        if self.render_mode is None:
            return None
        task, transcript = self._require_task(), self._transcript
        view = EpisodeView(
            title=task.id,
            facts=(f"{task.mode}, attack: {task.attack or 'none'}, seed {self._seed}",),
            injections=self._world.injections,
            reached=transcript.injection_reached,
            messages=transcript.messages,
            ended=transcript.ended,
            verdict=self._verdict if transcript.ended else None,
        )
        if self.render_mode == "ansi":
            return view.to_text()
        from fate_gym.notebook import to_html

        return to_html(view)

    def snapshot(self) -> bytes:
        """Returns the whole state as opaque bytes: world, conversation, counters, random number generator.

        Raises:
            gymnasium.error.ResetNeeded: There is no episode yet, or it is over.
        """
        task = self._require_task()
        if self._transcript.ended:
            raise gym.error.ResetNeeded("the episode is over, there is nothing to fork: snapshot before the last step")
        state: dict[str, Json] = {
            "task_id": task.id,
            "seed": self._seed,
            "transcript": self._transcript.to_json(),
            "rounds": self._rounds,
            "rng": self.np_random.bit_generator.state,
        }
        return pack(self._fingerprint, state, self._world.dump())

    def restore(self, snapshot: bytes) -> tuple[Observation, dict[str, Any]]:
        """Restores a snapshot of this environment or of any other with the same id and options.

        Returns:
            The observation and info at that point.

        Raises:
            SnapshotError: The bytes are damaged or belong to another specification; nothing has changed then.
        """
        state: dict[str, Any]
        state, world_state = unpack(self._fingerprint, snapshot)
        try:
            task_id, seed, rounds = str(state["task_id"]), int(state["seed"]), int(state["rounds"])
            self._check_task_id(task_id)
            world = self.benchmark.open(task_id, seed)
            world.load(world_state)
            transcript = Transcript.from_json(state["transcript"])
            rng = np.random.default_rng(0)
            rng.bit_generator.state = state["rng"]
        except Exception as error:
            # The checksums agree, so these bytes were forged: whatever fails on the way, they are no snapshot of ours.
            raise SnapshotError(
                f"this snapshot holds no state of an episode: {type(error).__name__}: {error}"
            ) from error
        self.np_random = rng
        self._begin(task_id, seed, world, transcript, rounds)
        return self._observation(), self._info()

    def __repr__(self) -> str:
        name = self.spec.id if self.spec else type(self.benchmark).__name__
        where = ""
        if self._task is not None:
            ended = f", ended: {self._transcript.ended}" if self._transcript.ended else ""
            where = f"; at {self._task.id}, turns taken: {len(self._transcript.actions)}{ended}"
        return f"<ToolEnv {' '.join([name, *described(self.benchmark)])}: {len(self.tasks)} tasks{where}>"

    __str__ = __repr__

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a pickle holds: the arguments, and the state of the episode if there is one.

        Raises:
            TypeError: An option cannot be pickled; the message names it.
        """
        state = self._state()
        check_picklable({**self.benchmark.options, "scalarization": state["arguments"]["scalarization"]})
        state["arguments"]["benchmark"] = (type(self.benchmark), dict(self.benchmark.options))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        arguments = state["arguments"]
        if not isinstance(arguments["benchmark"], Benchmark):
            kind, options = arguments["benchmark"]
            arguments = {**arguments, "benchmark": kind(**options)}
        ToolEnv.__init__(self, **arguments)
        for name, value in state["own"].items():
            setattr(self, name, value)
        if state["episode"] is not None:
            task_id, seed, world_state, transcript, rounds, outcome = state["episode"]
            world = self.benchmark.open(task_id, seed)
            world.load(world_state)
            self._begin(task_id, seed, world, transcript, rounds)
            self._verdict, self._status, self._problem = outcome

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        # Benchmarks serve many environments at once, and need not be made anew.
        twin.__setstate__(copy.deepcopy(self._state(), {**memo, id(self.benchmark): self.benchmark}))
        return twin

    def _state(self) -> dict[str, Any]:
        arguments = {name: getattr(self, name) for name in _ARGUMENTS if name != "scalarization"}
        arguments["scalarization"] = self._scalarize and self._scalarize.spec
        episode = None
        if self._task is not None:
            outcome = self._verdict, self._status, self._problem
            world_state = self._world.dump()
            episode = (self._task.id, self._seed, world_state, self._transcript, self._rounds, outcome)
        own = {
            name: getattr(self, name)
            for name in ("spec", "action_space", "observation_space", "_np_random", "_np_random_seed")
        }
        return {"arguments": {**arguments, "benchmark": self.benchmark}, "own": own, "episode": episode}

    def _begin(self, task_id: str, seed: int, world: World, transcript: Transcript, rounds: int) -> None:
        """Makes an episode the running one."""
        self._task = self.benchmark.task(task_id)
        self._seed, self._world, self._transcript, self._rounds = seed, world, transcript, rounds
        self._verdict, self._status, self._problem, self._failure = _NOT_SCORED, "ok", None, None
        self._failed = {call_identity(call) for call in transcript.calls if call.outcome == "tool_error"}
        if world.tools is not self._packed_from:
            # Every observation holds fresh copies, so that no caller can change the next one's tools.
            self._packed_from, self._packed_tools = world.tools, marshal.dumps(world.tools)

    def _opening(self, world: World) -> list[Message]:
        messages = copy_messages(world.opening)
        if self.system_prompt is None:
            return messages
        own = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return own + [message for message in messages if message["role"] != "system"]

    def _require_task(self) -> Task:
        if self._task is None:
            raise gym.error.ResetNeeded("there is no episode yet: call reset() first")
        return self._task

    def _running(self) -> Transcript:
        self._require_task()
        if self._transcript.ended is not None:
            raise gym.error.ResetNeeded(f"the episode is over ({self._transcript.ended}): call reset()")
        return self._transcript

    def _requested_task(self, options: object) -> str | None:
        """Returns the task that the options of `reset` name, None if they name none."""
        if options is None:
            return None
        if not isinstance(options, Mapping):
            raise TypeError(f"options must be a dict, got {type(options).__name__}")
        if unknown := [key for key in options if key != "task_id"]:
            raise ValueError(f"unknown reset options {unknown}; there is only 'task_id'")
        task_id = options.get("task_id")
        if task_id is not None:
            self._check_task_id(task_id)
        return task_id

    def _check_task_id(self, task_id: object) -> None:
        if not isinstance(task_id, str):
            raise ValueError(f"task_id must be a string, got {type(task_id).__name__}")
        if task_id in self._task_ids:
            return
        near = difflib.get_close_matches(str(task_id), self.tasks, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"the first is {self.tasks[0]!r}"
        raise ValueError(f"no task {task_id!r} among the {len(self.tasks)} of this environment; {hint}")

    def _take(self, action: Any, transcript: Transcript) -> Turn:
        """Reads an action and records it."""
        index = len(transcript.actions)
        turn = read_action(action, index, {call.id for call in transcript.calls}, verbatim=self.verbatim)
        if not transcript.holds(turn.raw, turn.message):
            turn = read_action(TOO_LONG, index)
        transcript.add_turn(turn.raw, turn.message)
        transcript.final_text = turn.text
        self._problem = turn.problem
        if turn.problem is not None:
            transcript.bad_turns.append(index)
        return turn

    def _run(self, call: RequestedCall) -> None:
        """Runs one call and answers it."""
        if call.problem is not None or call.arguments is None:
            self._answer(call, "unreadable", call.problem or "", call.arguments)
            return
        outcome = self._world.call(call.name, call.arguments)
        self._answer(call, outcome.kind, outcome.text, outcome.arguments)
        if not self._transcript.injection_reached:
            self._transcript.injection_reached = any(delivered(text, outcome.text) for text in self._world.payloads)

    def _decline_calls(self, turn: Turn, reason: str, start: int = 0) -> None:
        for call in turn.calls[start:]:
            self._answer(call, "not_run", reason, call.arguments)

    def _answer(self, call: RequestedCall, outcome: Outcome, content: str, arguments: dict[str, Json] | None) -> None:
        transcript = self._transcript
        content = transcript.cut(replace_surrogates(content))
        # A tool may have been given more than JSON can hold: AgentDojo reads lists of anything out of strings.
        recorded = None if arguments is None else cast(dict[str, Json], to_json(arguments))
        turn = len(transcript.actions) - 1
        transcript.calls.append(CallRecord(turn, call.id, call.name, recorded, outcome, content))
        transcript.add({"role": "tool", "tool_call_id": call.id, "content": content})
        repeats = outcome == "tool_error" and self._repeats(transcript.calls[-1])
        if self._problem is None and (outcome in WRONG_CALLS or repeats):
            repeated = "it repeats a call that failed: " if repeats else ""
            self._problem = f"call {call.id} ({call.name}): {repeated}{content[:_PROBLEM_LENGTH]}"

    def _repeats(self, failed: CallRecord) -> bool:
        """Notes a call that failed in the tool's domain; returns whether the same one has done so before."""
        identity = call_identity(failed)
        before = identity in self._failed
        self._failed.add(identity)
        return before

    def _end(self, ended: str, *, truncated: bool) -> Step:
        transcript = self._transcript
        transcript.ended, transcript.truncated = ended, truncated
        try:
            axes = self.benchmark.verify(self._require_task(), self._world, transcript)
            verdict = Verdict(**{"validity": _validity(transcript), **axes})
        except JudgeError as error:
            return self._fail("judge_error", str(error), error.__cause__)
        except Exception as error:
            return self._fail("env_error", f"the verifier failed: {type(error).__name__}: {error}", error)
        self._verdict = verdict
        return self._observation(), self._reward(), not truncated, truncated, self._info()

    def _fail(self, status: Status, reason: str, error: BaseException | None) -> Step:
        """Ends an episode that cannot be scored: the reward is zero, and no axis is active."""
        self._transcript.ended = self._transcript.ended or status
        self._transcript.truncated = True
        self._verdict, self._status, self._failure = Verdict.unscored(reason), status, error
        info = self._info()
        info["error"] = reason
        return self._observation(), self._reward(), False, True, info

    def _observation(self) -> Observation:
        observation: Observation = {"messages": copy_messages(self._transcript.messages)}
        if tools := marshal.loads(self._packed_tools):  # noqa: S302 (our own bytes, of plain data)
            observation["tools"] = tools
        return observation

    def _reward(self) -> Reward:
        if self._scalarize is None:
            vector: RewardVector = self._verdict.vector.view(RewardVector)
            return vector
        return self._scalarize(self._verdict.vector, self._verdict.mask)

    def _info(self) -> dict[str, Any]:
        task, transcript = self._require_task(), self._transcript
        info: dict[str, Any] = {
            "task_id": task.id,
            "status": self._status,
            "injection_reached": transcript.injection_reached,
            "reward_mask": self._verdict.mask,
        }
        if self._scalarize is not None:
            info["reward_vector"] = self._verdict.vector
        if self._problem is not None:
            info["problem"] = self._problem
        if transcript.ended is not None:
            info["ended"] = transcript.ended
            info["verdict"] = self._verdict
        return info


def _validity(transcript: Transcript) -> AxisVerdict:
    try:
        return verify_validity(transcript)
    except Exception as error:
        return AxisVerdict.failed(RULE, error)


_ARGUMENTS = tuple(name for name in inspect.signature(ToolEnv).parameters if name not in ("benchmark", "options"))
"""What the loop itself takes."""
