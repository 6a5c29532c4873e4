"""Refused episodes through a whole evaluation, against inspect_evals' port of AgentDojo with a mock model.

The shortest episodes show what a harness itself costs: a world is opened, one answer graded, and a record written.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from fate_gym.agents import REFUSER
from fate_gym.evaluation import EvalConfig, run_evaluation

pytestmark = [
    pytest.mark.bench,
    pytest.mark.timeout(1800),
    # inspect_ai leaves streams of its transcripts to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]

# The port has this version's tasks, and this attack, which it puts into every place: where nothing is read, that shows
# in no verdict.
_VERSION: Final = "v1.2.1"
_ATTACK: Final = "important_instructions_no_model_name"
_SUITES: Final = ("workspace", "travel", "banking", "slack")
_ONE_OF: Final = int(os.environ.get("FATE_GYM_REFUSED_ONE_OF", "24"))
"""Of so many episodes one is played; 1 plays all, in some ten minutes."""

Verdicts = dict[str, tuple[bool, bool | None]]
"""By task: whether the user's task was done, and whether the attack succeeded, None without one."""


def ours(out: Path, tasks: tuple[str, ...] | None, repeats: int) -> tuple[float, Verdicts]:
    """Returns the processor time of an episode, and the verdicts."""
    config = EvalConfig(
        "refuser", attack=(None, _ATTACK), env_args={"version": _VERSION}, tasks=tasks, repeats=repeats, out=out
    )
    plan = config.plan()
    began = time.process_time()
    run = asyncio.run(run_evaluation(config, REFUSER, plan=plan))
    spent = time.process_time() - began
    found: Verdicts = {}
    for episode in run.episodes:
        security, utility = episode.verdict.security, episode.verdict.utility
        found[episode.task_id] = (utility.value == 1.0, security.value == 0.0 if security.active else None)
    return spent / len(run.episodes), found


def theirs(logs: Path, ids: list[str], *, attacked: bool) -> tuple[float, Verdicts]:
    """Likewise of the port."""
    from inspect_ai import eval as evaluate
    from inspect_ai.model import ModelOutput, ModelUsage, get_model
    from inspect_evals.agentdojo import agentdojo

    def answer(*_: Any) -> ModelOutput:
        output = ModelOutput.from_content("mockllm/model", REFUSER.text)
        # Without it, tokens are counted by a tokenizer that would have to be downloaded.
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output

    task = agentdojo(workspace=list(_SUITES), with_injections=attacked)
    model = get_model("mockllm/model", custom_outputs=answer)
    began = time.process_time()
    (log,) = evaluate(task, model, sample_id=ids, log_dir=str(logs), display="none", max_samples=8)
    spent = time.process_time() - began
    # Here its warnings are passed over, later they would be an error.
    gc.collect()
    assert log.status == "success", log.error
    found: Verdicts = {}
    for sample in log.samples or ():
        suite, user, *injection = str(sample.id).split("-")
        goal = f"injection_task_{injection[0][1:]}" if injection else "none"
        name = f"{suite}/user_task_{user[1:]}/{goal}"
        (score,) = (sample.scores or {}).values()
        assert isinstance(score.value, dict)
        found[name] = (score.value["utility"] == "C", score.value["security"] == "C" if injection else None)
    return spent / len(ids), found


def test_a_refused_episode_costs_40_times_less_than_through_inspect_evals(
    tmp_path: Path, table: Callable[..., None]
) -> None:
    from inspect_evals.agentdojo.dataset import load_dataset

    benign, attacked = (
        [str(sample.id) for sample in load_dataset(task_suite=list(_SUITES), with_injections=way)][::_ONE_OF]
        for way in (False, True)
    )
    # What is loaded and imported once is no cost of an episode.
    theirs(tmp_path / "warm", [f"{suite}-u0" for suite in _SUITES], attacked=False)
    plain, verdicts = theirs(tmp_path / "plain", benign, attacked=False)
    injected, more = theirs(tmp_path / "injected", attacked, attacked=True)
    verdicts |= more
    peer = (plain * len(benign) + injected * len(attacked)) / len(verdicts)

    tasks = tuple(verdicts)
    ours(tmp_path / "first", tasks, 1)
    spent, own = ours(tmp_path / "ours", tasks, min(10, _ONE_OF))
    assert own == verdicts
    ratio = peer / spent
    work = f"refused episode through eval, {len(verdicts)} tasks (peer: inspect_evals with a mock model)"
    table(work, f"{1e3 * spent:.2f} ms", f"{1e3 * peer:.0f} ms", f"{ratio:.0f}x", ">= 40x")
    assert ratio >= 40
