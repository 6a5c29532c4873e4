"""A Hugging Face text classifier as a function from text to "this holds an injection"."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

from fate_gym.errors import UsageError
from fate_gym.pickling import Remade

_SAFE_LABEL, _THRESHOLD = "SAFE", 0.5
"""AgentDojo's."""

_LONGEST_WINDOW = 512
"""Detectors are trained on at most so many tokens; some models take more and judge worse."""


class TextClassifier(Remade):
    """Flags a text if its probability of being safe is below a threshold.

    For a classifier of two labels and a text that fits one window, the rule is that of AgentDojo's
    `TransformersBasedPIDetector`, with its defaults. Longer texts, which that one passes on whole, are split into
    windows that overlap by half, and are flagged if any window is: an instruction of up to half a window stands whole
    in one of them.

    The model is loaded with the first text, from safetensors alone, and its repository's code never runs.

    Args:
        model: Folder or Hugging Face id of a text-classification model.
        safe_label: The label of a harmless text.
        threshold: In [0, 1].

    Raises:
        UsageError: The libraries are not installed.
        ValueError: The threshold is not in [0, 1].
    """

    def __init__(self, model: str, safe_label: str = _SAFE_LABEL, threshold: float = _THRESHOLD) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"the threshold of an injection detector must be in [0, 1], got {threshold}")
        if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
            raise UsageError("an injection detector needs torch and transformers: pip install 'fate-gym[local]'")
        # A folder's place on this machine does not belong into results.
        self.name = Path(model).name if Path(model).is_dir() else model
        if (safe_label, threshold) != (_SAFE_LABEL, _THRESHOLD):
            self.name += f":{safe_label}:{threshold:g}"
        self._path = model
        self._safe_label = safe_label
        self._threshold = threshold
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._model: Any = None

    @classmethod
    def from_spec(cls, spec: str) -> TextClassifier:
        """Reads `MODEL`, `MODEL:SAFE_LABEL` or `MODEL:SAFE_LABEL:THRESHOLD`.

        Raises:
            UsageError, ValueError: As the constructor.
        """
        model, _, rest = spec.partition(":")
        label, _, threshold = rest.partition(":")
        try:
            number = float(threshold or _THRESHOLD)
        except ValueError:
            raise ValueError(f"the threshold of injection_detector:{spec} must be a number") from None
        return cls(model, label or _SAFE_LABEL, number)

    def __call__(self, text: str) -> bool:
        """Tells whether a text holds an injection.

        Raises:
            UsageError: The model cannot be loaded, is not a trained classifier, or lacks the safe label.
        """
        # One forward pass at a time: it already uses every core.
        with self._lock:
            if self._model is None:
                self._load()
            return any(self._safety(window) < self._threshold for window in self._windows(text))

    def _windows(self, text: str) -> list[dict[str, list[int]]]:
        """Token ids, and whatever else the model takes, of each window."""
        limits = (self._tokenizer.model_max_length, getattr(self._model.config, "max_position_embeddings", None))
        size = min(limit for limit in (*limits, _LONGEST_WINDOW) if limit)
        encoded = self._tokenizer(
            text, truncation=True, max_length=size, stride=size // 2, return_overflowing_tokens=True
        )
        inputs = [name for name in self._tokenizer.model_input_names if name in encoded]
        # A tokenizer without special tokens makes nothing of an empty text.
        return [{name: encoded[name][i] for name in inputs} for i, ids in enumerate(encoded["input_ids"]) if ids]

    def _safety(self, window: dict[str, list[int]]) -> float:
        import torch

        tensors = {name: torch.tensor([values], device=self._model.device) for name, values in window.items()}
        with torch.inference_mode():
            probabilities = self._model(**tensors).logits[0].float().softmax(-1)
        return float(probabilities[self._model.config.label2id[self._safe_label]])

    def _load(self) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(self._path, trust_remote_code=False)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                self._path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # a foreign model's files can fail in any way
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UsageError(f"injection detector {self._path} cannot be loaded: {reason}") from error
        if report["missing_keys"]:
            raise UsageError(
                f"{self._path} is not a trained text classifier: it lacks {sorted(report['missing_keys'])}"
            )
        labels = list(model.config.label2id)
        if self._safe_label not in labels:
            raise UsageError(
                f"{self._path} has the labels {', '.join(labels)}, and no {self._safe_label!r}: "
                f"name the harmless one, injection_detector:{self._path}:LABEL"
            )
        self._tokenizer = tokenizer
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
