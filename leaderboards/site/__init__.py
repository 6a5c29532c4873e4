"""The leaderboard as a folder of static pages that open from disk, offline."""

from fate_gym.leaderboards.site.pages import build_site
from fate_gym.leaderboards.site.single import board_file, trace_file

__all__ = ["board_file", "build_site", "trace_file"]
