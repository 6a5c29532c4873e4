"""What `import fate_gym` costs, as a share of `import gymnasium`."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.bench

# Processor time of one process: another one's load does not count.
CODE = """
import time
began = time.process_time()
import gymnasium
between = time.process_time()
import fate_gym
print((time.process_time() - between) / (between - began))
"""


def test_the_import_costs_at_most_a_quarter_of_gymnasiums() -> None:
    runs = [subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True) for _ in range(7)]
    shares = [float(run.stdout) for run in runs]
    print(f"\nimport fate_gym takes {min(shares):.0%} of import gymnasium")
    assert min(shares) <= 0.25
