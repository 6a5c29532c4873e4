"""Running agents over benchmarks: settings, plan, runner, runs on disk and in memory, metrics."""

from fate_gym.evaluation.config import EvalConfig
from fate_gym.evaluation.evaluate import run_evaluation
from fate_gym.evaluation.intervals import Estimate
from fate_gym.evaluation.run import Episodes, Run, load_run
from fate_gym.evaluation.store import RunFolder

__all__ = ["Episodes", "Estimate", "EvalConfig", "Run", "RunFolder", "load_run", "run_evaluation"]
