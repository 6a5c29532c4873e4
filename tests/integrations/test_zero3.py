"""Training under DeepSpeed ZeRO-3 on a CPU, as the shipped configuration has it. `make test-integrations` runs this."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import depot
import pytest
import sharded_runs
import shop_policy
import yaml

# Not imported here, which would take seconds.
if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("needs deepspeed: make test-integrations", allow_module_level=True)


def test_two_processes_with_sharded_weights_do_what_one_does_and_resume(tmp_path: Path) -> None:
    # As many processes as before: each has saved the shard that it held.
    sharded_runs.check_updates(tmp_path, sharded_runs.zero3(), resumed=2)


def test_a_whole_training_of_all_weights_does_what_one_process_does_though_a_process_failed(tmp_path: Path) -> None:
    policy = shop_policy.make_shop_policy(tmp_path / "policy")
    config = tmp_path / "depot.yaml"
    config.write_text(yaml.safe_dump(depot.settings(policy)))
    one, two = tmp_path / "one", tmp_path / "two"
    alone = sharded_runs.train(config, one, 0, {})
    assert alone.returncode == 0, alone.stderr[-3000:]
    summary = sharded_runs.train_where_one_fails(config, two, sharded_runs.zero3())
    for update in ("warmup", "pfpo"):
        sharded_runs.check_same_update(policy, one / "round-1" / update, two / "round-1" / update)
    expected = json.loads(alone.stdout)
    for part in ("before", "after", "splits"):
        assert summary[part] == expected[part]
    assert expected["after"]["n"] > 0
