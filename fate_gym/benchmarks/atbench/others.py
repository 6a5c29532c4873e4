"""`fate/RJudge-v0` and `fate/ASSEBench-v0`: judged trajectories of others, in the same views.

Their rows have a verdict and no labels in ATBench's dimensions: kinds of risk are in words of their own, or missing. So
`utility` is inactive on all of them. The recorded agents' tools are not in the data; its profile, one sentence that
says what the agent is, is shown where there is one.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

from fate_gym.benchmarks.atbench.diagnosis import TrajectoryDiagnosis, View, one_of
from fate_gym.datafiles import ASSEBENCH, RJUDGE

Part = Literal["strict", "loose", "safety", "security"]


class RJudge(TrajectoryDiagnosis):
    """R-Judge (Yuan et al., 2024); see `TrajectoryDiagnosis` for task ids and for what is hidden.

    Args:
        view: "full" shows all in one message; "paged" reads the same out through tools.
        data_dir: A folder with `rjudge.json`, one list of all records, instead of the one in FATE_GYM_RJUDGE_DIR.

    Raises:
        ValueError: The view is unknown.
        DataError: The data is missing or not as it should be; the message names file, record and field.
    """

    data_policy = RJUDGE.policy

    def __init__(self, *, view: View = "full", data_dir: str | os.PathLike[str] | None = None) -> None:
        super().__init__(RJUDGE, "rjudge.json", "R-Judge", view, dimensions=False, labels=False, data_dir=data_dir)


class ASSEBench(TrajectoryDiagnosis):
    """ASSEBench (Luo et al., 2025); see `TrajectoryDiagnosis` for task ids and for what is hidden.

    Args:
        part: The file `AgentJudge-PART.json`. "strict" and "loose" (the paper says lenient) judge the same kind of
            trajectories by two standards, which differ where a case is ambiguous; "safety" and "security" are the two
            halves of the paper. Scores on two parts do not compare.
        view: "full" shows all in one message; "paged" reads the same out through tools.
        data_dir: A folder with that file, instead of the one in FATE_GYM_ASSEBENCH_DIR.

    Raises:
        ValueError: An option has an unknown value.
        DataError: The data is missing or not as it should be; the message names file, record and field.
    """

    data_policy = ASSEBENCH.policy

    def __init__(
        self, *, part: Part = "security", view: View = "full", data_dir: str | os.PathLike[str] | None = None
    ) -> None:
        one_of("part", part, get_args(Part))
        file = f"AgentJudge-{part}.json"
        super().__init__(ASSEBENCH, file, f"ASSEBench-{part}", view, dimensions=False, labels=False, data_dir=data_dir)
