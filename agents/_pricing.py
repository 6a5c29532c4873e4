"""What a call costs, where its price is known. An unknown price is an unknown cost, never zero."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from typing import TypeAlias

import yaml

from fate_gym.storage import is_finite

Prices: TypeAlias = Mapping[str, Mapping[str, float]]
"""Model -> USD per million tokens: `input`, `output` and, where it differs from `input`, `cached`."""

_DATE = re.compile(r"-\d{4}-?\d{2}-?\d{2}$")


def shipped_prices() -> Prices:
    """Reads the table that ships with the package, `prices.yaml`."""
    text = (importlib.resources.files("fate_gym.agents") / "prices.yaml").read_text(encoding="utf-8")
    models: Prices = yaml.safe_load(text)["models"]
    return models


def check_prices(table: Prices) -> None:
    """Checks a table that a user gave.

    Raises:
        ValueError: An entry lacks `input` or `output`, or holds something that is not a price.
    """
    for model, prices in table.items():
        known = isinstance(prices, Mapping) and {"input", "output"} <= set(prices) <= {"input", "output", "cached"}
        if not known or not all(is_finite(price) and price >= 0 for price in prices.values()):
            raise ValueError(
                f"prices[{model!r}] must hold input, output and perhaps cached, in USD per million tokens, as in "
                f"prices={{{model}: {{input: 1.0, output: 2.0}}}}, got {prices}"
            )


def cost(model: str, usage: Mapping[str, float], table: Prices) -> float | None:
    """Returns what a call cost, in USD, or None where its price or its tokens are unknown.

    Args:
        model: The model's id; one with a date (`gpt-4o-2024-08-06`) has the undated one's price if none of its own.
        usage: `prompt_tokens` (cached ones included), `completion_tokens` (reasoning included), `cached_tokens`.
        table: The prices.
    """
    prices = table.get(model) or table.get(_DATE.sub("", model))
    if prices is None or not {"prompt_tokens", "completion_tokens"} <= set(usage):
        return None
    cached = usage.get("cached_tokens", 0)
    spent = (usage["prompt_tokens"] - cached) * prices["input"] + usage["completion_tokens"] * prices["output"]
    return (spent + cached * prices.get("cached", prices["input"])) / 1e6
