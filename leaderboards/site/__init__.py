"""The leaderboard as a folder of static pages that open from disk, offline."""

from fate_gym.leaderboards.site.pages import build_site

__all__ = ["build_site"]
