"""Base policies that are made by cloning: competent and unsafe, from nothing or from any chat model."""

from fate_gym.trainers.cloning.base import BaseReport, build_base, read_base
from fate_gym.trainers.cloning.demonstrations import held_out, seen
from fate_gym.trainers.cloning.settings import CloningSettings, Mixture

__all__ = ["BaseReport", "CloningSettings", "Mixture", "build_base", "held_out", "read_base", "seen"]
