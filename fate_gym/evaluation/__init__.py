"""Running agents over benchmarks: settings, plan, runner, run folder, metrics."""

from fate_gym.evaluation.config import EvalConfig
from fate_gym.evaluation.evaluate import evaluate
from fate_gym.evaluation.store import RunFolder

__all__ = ["EvalConfig", "RunFolder", "evaluate"]
