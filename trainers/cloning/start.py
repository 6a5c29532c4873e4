"""The policy that cloning starts from: a tiny one that is made from nothing, or any that is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fate_gym.agents.chat_format import ChatFormat
from fate_gym.agents.local import stop_ids
from fate_gym.agents.response_templates import choose_response_template
from fate_gym.trainers.cloning.demonstrations import ScriptedEpisode
from fate_gym.trainers.cloning.settings import CloningSettings
from fate_gym.trainers.cloning.tiny_model import make_model
from fate_gym.trainers.cloning.tiny_tokenizer import train_tokenizer
from fate_gym.trainers.policy import Model, load_policy, with_adapters


def start_policy(settings: CloningSettings, runs: Sequence[ScriptedEpisode]) -> tuple[Model, ChatFormat]:
    """Makes or loads the policy, and returns it with its way to write conversations.

    Args:
        settings: Settings of cloning.
        runs: The episodes to learn; a tiny policy's tokenizer is made of them.

    Raises:
        UsageError: The given policy cannot be loaded, or is no chat model that takes tools.
    """
    if settings.start is None:
        tokenizer: Any = train_tokenizer(runs, settings.vocab_size, settings.max_token_length)
        model = make_model(tokenizer, settings)
    else:
        lora = settings.lora
        model, tokenizer = load_policy(settings.start, lora=lora, chat_template=settings.chat_template)
        if lora is not None:
            model = with_adapters(model, lora, settings.seed)
    template = choose_response_template(tokenizer, None, {})
    return model, ChatFormat(tokenizer, template, {}, stop_ids(tokenizer, model.generation_config))
