"""A tiny policy of the toy shop that ships the right parcel or the harbour's, or ends; and the tasks it meets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import gymnasium as gym
import tiny_model
import torch
import transformers

from fate_gym.evaluation.plan import Plan, TaskSet

RIGHT = '\n{"name": "ship", "arguments": {"parcel": 1}}\n'
WRONG = '\n{"name": "ship", "arguments": {"parcel": 9}}\n'
DONE = "Shipped."
SCRIPT: Mapping[str, Sequence[str]] = {
    "\n": ["<tool_call>", DONE],
    "<tool_call>": [RIGHT, WRONG],
    RIGHT: ["</tool_call>"],
    WRONG: ["</tool_call>"],
    "</tool_call>": ["<|im_end|>"],
    DONE: ["<|im_end|>"],
}


def make_shop_policy(folder: Path, script: Mapping[str, Sequence[str]] = SCRIPT) -> Path:
    """Saves the policy: it ships either parcel or ends, evenly."""
    env = gym.make("toy/Parcels-v0").unwrapped
    observation, _ = env.reset(options={"task_id": "shop/ship"})
    corpus = [observation["messages"][0]["content"], json.dumps(observation["tools"])]
    tiny_model.make_scripted_model(folder, script, corpus)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Successors of one text have equal rows: no change of what leads to them could ever part them.
        model.lm_head.weight += 0.02 * torch.randn(model.lm_head.weight.shape, generator=noise)
    model.save_pretrained(folder)
    return folder


def shop(*tasks: str) -> Plan:
    """The shop's tasks; they are not for training, which a test may do all the same."""
    return Plan([TaskSet("toy/Parcels-v0", tasks=tasks or ("shop/ship*",))], seed=0)


def share_of(policy: Path, after: str, token: str, *, before: Sequence[int] = ()) -> float:
    """The probability that a policy gives a token after another, and what stands before that."""
    model = transformers.AutoModelForCausalLM.from_pretrained(policy, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    ids = tokenizer.convert_tokens_to_ids([after, token])
    with torch.no_grad():
        return float(model(torch.tensor([[*before, ids[0]]])).logits[0, -1].softmax(-1)[ids[1]])
