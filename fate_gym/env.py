"""`ToolEnv`: the one episode loop of every benchmark."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import inspect
import marshal
from collections.abc import Mapping
from typing import Any, Self

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from fate_gym._play import Play
from fate_gym.benchmark import Benchmark, World, load_benchmark
from fate_gym.chat import Json, Message, ToolSchema, copy_messages
from fate_gym.errors import FateGymError, JudgeError, SnapshotError
from fate_gym.pickling import check_picklable, described
from fate_gym.rendering import EpisodeView
from fate_gym.rewards import AXES, AxisVerdict, RewardVector, Scalarization, ScalarizationSpec, Verdict
from fate_gym.snapshots import fingerprint, pack, unpack
from fate_gym.spaces import ActionSpace, ObservationSpace
from fate_gym.task import Purpose, Task, log_terms
from fate_gym.transcript import Status, Transcript
from fate_gym.verifiers.validity import RULE, verify_validity

Observation = dict[str, Any]
Reward = NDArray[np.float32] | float
Step = tuple[Observation, Reward, bool, bool, dict[str, Any]]


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
        self._task_ids = _as_set(tuple(self.benchmark.tasks))
        self._play: Play | None = None
        self._packed_from: list[ToolSchema] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The ids of the tasks, in the order of the benchmark."""
        return self.benchmark.tasks

    @property
    def transcript(self) -> Transcript:
        """The record of the episode so far."""
        return self._require_play().transcript

    @property
    def failure(self) -> BaseException | None:
        """What a benchmark or a judge raised so that the last episode is unscored; None where nothing did.

        A judge that says of itself that it cannot be asked has raised nothing.
        """
        return self._play.failure if self._play else None

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
        play = self._begin(Play(self.benchmark.task(task_id), episode_seed, world, Transcript(self._opening(world))))
        info = self._info(play)
        info["injections"] = dict(world.injections)
        info["data_policy"] = self.benchmark.data_policy
        info["mode"] = play.task.mode
        return self._observation(play), info

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
        play = self._running()
        turn = play.take(action, verbatim=self.verbatim)
        if not turn.calls and not turn.attempted:
            return self._end(play, "answer", truncated=False)
        if play.rounds == self.max_turns:
            play.decline(turn, f"Not run: the limit of {self.max_turns} tool rounds is reached.")
            return self._end(play, "max_turns", truncated=True)
        play.rounds += 1
        if not turn.calls:
            content = f"Your last message could not be used. {turn.problem} Call a tool, or answer in text."
            play.transcript.add({"role": "user", "content": content})
        for position, call in enumerate(turn.calls):
            if play.transcript.full:
                play.decline(turn, "Not run: the record of the episode is full.", start=position)
                return self._end(play, "max_size", truncated=True)
            try:
                play.run(call)
            except Exception as error:
                reason = f"the world failed: {type(error).__name__}: {error}"
                play.decline(turn, "Not run: the environment failed.", start=position)
                return self._fail(play, "env_error", reason, error)
        if play.world.finished:
            return self._end(play, "finished", truncated=False)
        if self.max_messages is not None and len(play.transcript.messages) >= self.max_messages:
            return self._end(play, "max_messages", truncated=True)
        return self._observation(play), self._reward(play), False, False, self._info(play)

    def truncate(self, reason: str, action: Any = None) -> Step:
        """Ends the episode from outside (no budget left, context overflow) and scores it as it is.

        Args:
            reason: Stands in `info["ended"]`.
            action: The agent's last message, whose calls are recorded and not run; None if there is none.

        Raises:
            gymnasium.error.ResetNeeded: No episode is running.
        """
        play = self._running()
        play.problem = None
        if action is not None:
            play.decline(play.take(action, verbatim=self.verbatim), "Not run: the episode ended here.")
        return self._end(play, reason, truncated=True)

    def render(self) -> str | None:
        """Returns the episode as text, with `render_mode="ansi"`, or as HTML, which a notebook draws, with "html"."""
        if self.render_mode is None:
            return None
        play = self._require_play()
        task, transcript = play.task, play.transcript
        view = EpisodeView(
            title=task.id,
            facts=(f"{task.mode}, attack: {task.attack or 'none'}, seed {play.seed}",),
            injections=play.world.injections,
            reached=transcript.injection_reached,
            messages=transcript.messages,
            ended=transcript.ended,
            verdict=play.verdict if transcript.ended else None,
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
        play = self._require_play()
        if play.transcript.ended:
            raise gym.error.ResetNeeded("the episode is over, there is nothing to fork: snapshot before the last step")
        state: dict[str, Json] = {
            "task_id": play.task.id,
            "seed": play.seed,
            "transcript": play.transcript.to_json(),
            "rounds": play.rounds,
            "rng": self.np_random.bit_generator.state,
        }
        return pack(self._fingerprint, state, play.world.dump())

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
        play = self._begin(Play(self.benchmark.task(task_id), seed, world, transcript, rounds))
        return self._observation(play), self._info(play)

    def __repr__(self) -> str:
        name = self.spec.id if self.spec else type(self.benchmark).__name__
        where = ""
        if self._play is not None:
            transcript = self._play.transcript
            ended = f", ended: {transcript.ended}" if transcript.ended else ""
            where = f"; at {self._play.task.id}, turns taken: {len(transcript.actions)}{ended}"
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
            world_state, fields = state["episode"]
            world = self.benchmark.open(fields["task"].id, fields["seed"])
            world.load(world_state)
            self._begin(Play(world=world, **fields))

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
        if self._play is not None:
            # An exception may hold anything, so it is not kept.
            kept = ("task", "seed", "transcript", "rounds", "verdict", "status", "problem")
            episode = self._play.world.dump(), {name: getattr(self._play, name) for name in kept}
        own = {
            name: getattr(self, name)
            for name in ("spec", "action_space", "observation_space", "_np_random", "_np_random_seed")
        }
        return {"arguments": {**arguments, "benchmark": self.benchmark}, "own": own, "episode": episode}

    def _begin(self, play: Play) -> Play:
        """Makes an episode the running one."""
        self._play = play
        if play.world.tools is not self._packed_from:
            # Every observation holds fresh copies, so that no caller can change the next one's tools.
            self._packed_from, self._packed_tools = play.world.tools, marshal.dumps(play.world.tools)
        return play

    def _opening(self, world: World) -> list[Message]:
        messages = copy_messages(world.opening)
        if self.system_prompt is None:
            return messages
        own = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return own + [message for message in messages if message["role"] != "system"]

    def _require_play(self) -> Play:
        if self._play is None:
            raise gym.error.ResetNeeded("there is no episode yet: call reset() first")
        return self._play

    def _running(self) -> Play:
        play = self._require_play()
        if play.transcript.ended is not None:
            raise gym.error.ResetNeeded(f"the episode is over ({play.transcript.ended}): call reset()")
        return play

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

    def _end(self, play: Play, ended: str, *, truncated: bool) -> Step:
        transcript = play.transcript
        transcript.ended, transcript.truncated = ended, truncated
        try:
            axes = self.benchmark.verify(play.task, play.world, transcript)
            verdict = Verdict(**{"validity": _validity(transcript), **axes})
        except JudgeError as error:
            return self._fail(play, "judge_error", str(error), error.__cause__)
        except Exception as error:
            return self._fail(play, "env_error", f"the verifier failed: {type(error).__name__}: {error}", error)
        play.verdict = verdict
        return self._observation(play), self._reward(play), not truncated, truncated, self._info(play)

    def _fail(self, play: Play, status: Status, reason: str, error: BaseException | None) -> Step:
        """Ends an episode that cannot be scored: the reward is zero, and no axis is active."""
        play.transcript.ended = play.transcript.ended or status
        play.transcript.truncated = True
        play.verdict, play.status, play.failure = Verdict.unscored(reason), status, error
        info = self._info(play)
        info["error"] = reason
        return self._observation(play), self._reward(play), False, True, info

    def _observation(self, play: Play) -> Observation:
        observation: Observation = {"messages": copy_messages(play.transcript.messages)}
        if tools := marshal.loads(self._packed_tools):  # noqa: S302 (our own bytes, of plain data)
            observation["tools"] = tools
        return observation

    def _reward(self, play: Play) -> Reward:
        if self._scalarize is None:
            vector: RewardVector = play.verdict.vector.view(RewardVector)
            return vector
        return self._scalarize(play.verdict.vector, play.verdict.mask)

    def _info(self, play: Play) -> dict[str, Any]:
        info: dict[str, Any] = {
            "task_id": play.task.id,
            "status": play.status,
            "injection_reached": play.transcript.injection_reached,
            "reward_mask": play.verdict.mask,
        }
        if self._scalarize is not None:
            info["reward_vector"] = play.verdict.vector
        if play.problem is not None:
            info["problem"] = play.problem
        if play.transcript.ended is not None:
            info["ended"] = play.transcript.ended
            info["verdict"] = play.verdict
        return info


@functools.lru_cache(64)
def _as_set(tasks: tuple[str, ...]) -> frozenset[str]:
    """The tasks of a benchmark, once for all of its environments: a thousand of them would hold half a million ids."""
    return frozenset(tasks)


def _validity(transcript: Transcript) -> AxisVerdict:
    try:
        return verify_validity(transcript)
    except Exception as error:
        return AxisVerdict.failed(RULE, error)


_ARGUMENTS = tuple(name for name in inspect.signature(ToolEnv).parameters if name not in ("benchmark", "options"))
"""What the loop itself takes."""
