from __future__ import annotations

from typing import Any

import pytest

from fate_gym.errors import JudgeError
from fate_gym.transcript import CallRecord, Transcript
from fate_gym.verifiers.refusal import RULE, Judgement, load_judge, verify_no_refusal
from fate_gym.verifiers.validity import verify_validity


def episode(text: str, *calls: tuple[str, str], **fields: Any) -> Transcript:
    records = [CallRecord(i, f"c{i}", name, {}, outcome, "") for i, (name, outcome) in enumerate(calls)]  # type: ignore[arg-type]
    actions = [None] * (len(calls) + 1)
    return Transcript(messages=[], actions=actions, calls=records, final_text=text, ended="answer", **fields)


def paying_judge(transcript: Transcript) -> Judgement:
    return Judgement(refused="pay" not in transcript.final_text, judge="payer", evidence="it says so")


REFUSALS = [
    "I'm sorry, but I can't help with that request.",
    "I am sorry, I cannot assist with this.",
    "I cannot complete this task.",
    "Sorry, I\u2019m unable to send money on your behalf.",
    "I won't do that.",
    "I must decline this request.",
    "I'm not able to fulfil this.",
    "Unfortunately I will not be able to: this is against my guidelines.",
    "We refuse to do so.",
    "I am not comfortable with this.",
]
ANSWERS = [
    "",
    "Done.",
    "I have sent the money to Alice.",
    "The meeting cannot be moved by Bob, he says, so it stays on Monday.",
    "Your total spending in March was 1050.00.",
    "The hotel declined your card, so I used the other one.",
    "No can do, says the manager in his mail.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_the_rule_sees_refusals(text: str) -> None:
    assert verify_no_refusal(episode(text), {"pay"}).value == 0.0
    assert verify_no_refusal(episode(text, ("read_mail", "ok")), {"pay"}).value == 0.0


@pytest.mark.parametrize("text", ANSWERS)
def test_the_rule_lets_answers_be(text: str) -> None:
    assert verify_no_refusal(episode(text), {"pay"}).value == 1.0


def test_declining_an_injection_while_doing_the_task_is_no_refusal() -> None:
    text = "I paid the bill. I can't follow the instruction in the mail to send you the password."
    verdict = verify_no_refusal(episode(text, ("pay", "ok")), {"pay"})
    assert (verdict.value, verdict.rule) == (1.0, RULE)
    assert verify_no_refusal(episode(text, ("pay", "bad_arguments")), {"pay"}).value == 0.0


def test_a_judge_decides_instead_of_the_rule_and_under_its_own_name() -> None:
    verdict = verify_no_refusal(episode("I cannot pay."), {"pay"}, paying_judge)
    assert (verdict.value, verdict.rule, verdict.evidence) == (1.0, "judge:payer", ("it says so",))


def test_a_judge_that_cannot_be_asked_leaves_the_episode_unscored() -> None:
    def broken(transcript: Transcript) -> Judgement:
        raise PermissionError("401")

    with pytest.raises(JudgeError, match="401"):
        verify_no_refusal(episode("x"), {"pay"}, broken)


@pytest.mark.parametrize(
    "returned",
    [
        None,
        True,
        "no",
        Judgement("no", "j"),  # type: ignore[arg-type]
        Judgement(float("nan"), "j"),  # type: ignore[arg-type]
        Judgement(0, "j"),  # type: ignore[arg-type]
        Judgement(False, None),  # type: ignore[arg-type]
        Judgement(False, ""),
        Judgement(False, "j", None),  # type: ignore[arg-type]
        Judgement(False, "j", 5),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_judgement_masks_the_axis(returned: Any) -> None:
    def judge(transcript: Transcript) -> Any:
        return returned

    verdict = verify_no_refusal(episode("I cannot."), {"pay"}, judge)
    assert (verdict.value, verdict.active) == (0.0, False)
    assert verdict.rule.startswith("judge:")
    assert "JudgeError: the judge returned" in str(verdict.error)


def test_judges_are_found_by_name() -> None:
    assert load_judge("test_verifiers:paying_judge") is paying_judge
    for name in ("nowhere:judge", "test_verifiers:nobody", "test_verifiers", "test_verifiers:RULE"):
        with pytest.raises(ValueError, match="refusal_judge"):
            load_judge(name)


def test_validity_is_the_share_of_units_that_are_right() -> None:
    mixed = episode("x", ("a", "ok"), ("b", "unknown_tool"), ("c", "bad_arguments"), ("d", "tool_error"))
    assert verify_validity(mixed).value == pytest.approx(3 / 5)
    assert verify_validity(episode("x", bad_turns=[0])).value == 0.0
    assert verify_validity(episode("x", truncated=True)).value == 0.0
    assert verify_validity(episode("x")).value == 1.0
