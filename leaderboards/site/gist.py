"""An episode in three sentences: what the user wanted, what the attacker wanted, what happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fate_gym.episode import Episode
from fate_gym.leaderboards.site.text import short
from fate_gym.leaderboards.site.traces import Trace

_LONGEST: Final = 500

_CUT: Final = {
    "max_turns": "It used up its turns.",
    "context_overflow": "Its context overflowed.",
    "endless_reply": "It did not come to the end of a reply.",
    "aborted": "A defence stopped it.",
    "calls_left": "Its last calls were not run.",
    "limit": "A limit of another harness ended it.",
}
"""Why an episode was cut off, by how it ended."""


@dataclass(frozen=True, slots=True)
class Gist:
    """What stands first on a trace page.

    Attributes:
        user: What the user asked for.
        attacker: What the attacker wanted; "" where there is none.
        happened: What became of the attack, or of the task where there is none.
        besides: What else is to be said.
        bad: Whether the attacker, or whoever asked for harm, got it.
        calls: Numbers and names of the calls that did it.
    """

    user: str
    attacker: str
    happened: str
    besides: str
    bad: bool
    calls: tuple[tuple[int, str], ...]


def gist(episode: Episode, trace: Trace) -> Gist:
    """Tells an episode in three sentences."""
    calls = [call for entry in trace.entries for call in entry.calls]
    obeyed = tuple((call.number, call.name) for call in calls if call.obeyed)
    security = episode.verdict.security
    bad = episode.status == "ok" and security.active and security.value < 1
    happened, *more = _happened(episode)
    if not calls and episode.mode != "diagnosis":
        more.append("It made no call.")
    if episode.truncated:
        more.append(_CUT.get(episode.ended or "", "It was cut off before it had ended."))
    return Gist(_user(episode), _attacker(episode), happened, " ".join(more), bad, obeyed)


def _user(episode: Episode) -> str:
    said = next((m.get("content") for m in episode.messages if m["role"] == "user"), None)
    return short(" ".join((said or "").split()), _LONGEST) or "(no message of a user)"


def _attacker(episode: Episode) -> str:
    if episode.mode != "attacked":
        return ""
    goal = episode.metadata.get("injection_goal")
    if isinstance(goal, str) and goal:
        return short(" ".join(goal.split()), _LONGEST)
    if episode.verdict.security.rule.startswith("denial of service"):
        return "Keep the agent from doing the user's task."
    injected = next(iter(episode.injections.values()), "")
    return short(" ".join(injected.split()), _LONGEST) or "(the run does not say)"


def _happened(episode: Episode) -> list[str]:
    if episode.status != "ok":
        reason = short(episode.error or "no reason given", 200)
        return [f"There is no score ({episode.status.replace('_', ' ')}): {reason}"]
    if episode.mode == "attacked":
        return [_attacked(episode), _did_task(episode, "It")]
    tell = {"harmful": _harmful, "diagnosis": _diagnosis}.get(episode.mode)
    return [tell(episode) if tell else _did_task(episode, "The agent")]


def _attacked(episode: Episode) -> str:
    security = episode.verdict.security
    if not security.active:
        return "Whether the attack succeeded is not known: its grader failed."
    if security.value < 1:
        return "The agent did what the attacker wanted."
    if not episode.injection_reached:
        return "The injected text never reached the agent."
    return "The agent was shown the injected text and did not do what it asks."


def _did_task(episode: Episode, who: str) -> str:
    utility, refusal = episode.verdict.utility, episode.verdict.over_refusal_control
    if refusal.active and refusal.value < 1:
        return f"{who} refused the user's task."
    if not utility.active:
        return "Whether the user's task was done is not known."
    if 0 < utility.value < 1:
        return f"{who} did {100 * utility.value:.0f} % of the user's task."
    return f"{who} did the user's task." if utility.value else f"{who} did not do the user's task."


def _harmful(episode: Episode) -> str:
    security, measures = episode.verdict.security, episode.verdict.security.measures
    if not security.active:
        low, high = measures.get("harm_low"), measures.get("harm_high")
        if low is None or high is None:
            return "How much harm was done is not known."
        return f"Between {100 * low:.0f} and {100 * high:.0f} % of the harmful request was met, as no judge was asked."
    if security.value == 1:
        return "The agent did nothing of the harmful request."
    return f"The agent met {100 * (1 - security.value):.0f} % of the harmful request."


def _diagnosis(episode: Episode) -> str:
    security, control = episode.verdict.security, episode.verdict.over_refusal_control
    if security.active:
        return f"The trajectory is unsafe, and the agent called it {'unsafe' if security.value == 1 else 'safe'}."
    if control.active:
        return f"The trajectory is safe, and the agent called it {'safe' if control.value == 1 else 'unsafe'}."
    return "The agent gave no verdict that could be read."
