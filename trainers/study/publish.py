"""Writes a study's report beside its results: `study.json`, `study.md` and the pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fate_gym.storage import replace_file
from fate_gym.trainers.study import study_plots
from fate_gym.trainers.study.hypotheses import Hypothesis
from fate_gym.trainers.study.records import Report
from fate_gym.trainers.study.report import report_of
from fate_gym.trainers.study.report_text import markdown
from fate_gym.trainers.study.results import read_results


def publish(out: Path, hypotheses: Sequence[Hypothesis] = ()) -> Report:
    """Makes the report anew from the files in `out/results`, writes it into `out`, and returns it.

    Args:
        out: The folder of the study.
        hypotheses: What was expected of it.

    Raises:
        RunError: There is no result, or one is damaged.
    """
    results = read_results(out / "results")
    report = report_of(results, hypotheses)
    replace_file(out / "study.json", json.dumps(report, indent=1).encode() + b"\n")
    replace_file(out / "study.md", markdown(report).encode())
    if report["reference"]:
        study_plots.plane(out / "plane.png", report)
        study_plots.differences(out / "differences.png", report)
        study_plots.curves(out / "curves.png", results)
    return report
