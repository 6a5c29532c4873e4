"""From runs to a page that people trust: statistics, site, submissions."""

from fate_gym.leaderboards.board import Board, Estimate, Front, Row, build
from fate_gym.leaderboards.comparison import Comparison, compare
from fate_gym.leaderboards.runs import LoadedRun, find_runs, load_runs

__all__ = [
    "Board",
    "Comparison",
    "Estimate",
    "Front",
    "LoadedRun",
    "Row",
    "build",
    "compare",
    "find_runs",
    "load_runs",
]
