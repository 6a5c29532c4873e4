"""The tiny case's base policy: competent, unsafe, and made from nothing in minutes on two cores."""

from fate_gym.trainers.tiny.base import BaseReport, build_base, read_base
from fate_gym.trainers.tiny.demonstrations import held_out, seen
from fate_gym.trainers.tiny.settings import Mixture, TinySettings

__all__ = ["BaseReport", "Mixture", "TinySettings", "build_base", "held_out", "read_base", "seen"]
