"""`fate/ATBench-v0`: recorded trajectories of agents, to be judged safe or unsafe."""

from __future__ import annotations

import os
from typing import Final, Literal

from fate_gym.benchmarks.atbench.diagnosis import TrajectoryDiagnosis, View, one_of
from fate_gym.datafiles import ATBENCH, ATBENCH300, DataFiles

Config = Literal["ATBench", "ATBench500", "ATBench300"]

_FILES: Final[dict[str, tuple[DataFiles, str]]] = {
    "ATBench": (ATBENCH, "ATBench/test.json"),
    "ATBench500": (ATBENCH, "ATBench500/test.json"),
    "ATBench300": (ATBENCH300, "summer_camp_ATBench300.json"),
}


class ATBench(TrajectoryDiagnosis):
    """ATBench (Li et al., 2026); see `TrajectoryDiagnosis` for task ids and for what is hidden.

    Args:
        config: "ATBench", the 1,000 trajectories of April 2026; "ATBench500", of January 2026; or "ATBench300", the 300
            rows that the authors gave out for a course, whose third dimension is called `harm_type`. Scores on the
            three do not compare.
        view: "full" is the published protocol; "paged" reads the same out through tools.
        labels: Whether a diagnosis of unsafe needs its three labels. None for the view's default: False in the full
            view (the published coarse task), True in the paged one.
        data_dir: A folder with `ATBench/test.json`, `ATBench500/test.json` or `summer_camp_ATBench300.json`, instead of
            the one in FATE_GYM_ATBENCH_DIR or the hub's cache.

    Raises:
        ValueError: An option has an unknown value.
        DataError: The data is missing or not as it should be; the message names file, record and field.
    """

    data_policy = ATBENCH.policy

    def __init__(
        self,
        *,
        config: Config = "ATBench",
        view: View = "full",
        labels: bool | None = None,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        one_of("config", config, tuple(_FILES))
        data, file = _FILES[config]
        labels = view == "paged" if labels is None else labels
        super().__init__(data, file, config, view, dimensions=True, labels=labels, data_dir=data_dir)
