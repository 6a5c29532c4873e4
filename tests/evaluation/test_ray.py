"""Episodes on a real Ray cluster of two nodes, one of which is lost midway."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shop_policy
import shop_workers
from test_workers import lines, run

from fate_gym.agents.api import OpenAIAgent
from fate_gym.agents.local import LocalAgent
from fate_gym.cli import main
from fate_gym.errors import UsageError, WorkerError
from fate_gym.evaluation.finished import Finished

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).parents[1] / "support"
SECRET = "sk-secret-of-the-shop"  # noqa: S105 (made up)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each, and a head without any."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("SHOP_KEY", SECRET)
        # The nodes' own Python finds the modules of the tests, as a user's must be found on every machine.
        patch.setenv("PYTHONPATH", str(SUPPORT))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def test_a_run_goes_on_from_one_machine_to_a_cluster_and_back(cluster: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"workers": 1, "repeats": 3}
    run(shop_workers.Clerk(), tmp_path / "run", limit=1, **settings)
    found = run(shop_workers.Clerk(), tmp_path / "run", limit=2, backend="ray", **settings)
    assert found.summary["episodes"]["scored"] == 6
    run(shop_workers.Clerk(), tmp_path / "run", **settings)
    run(shop_workers.Clerk(), tmp_path / "one", **settings)
    assert lines(tmp_path / "run") == lines(tmp_path / "one")


def test_each_actor_with_a_local_model_has_a_card_of_its_own(cluster: Any, tmp_path: Path) -> None:
    policy = shop_policy.make_shop_policy(tmp_path / "policy")
    (cards := tmp_path / "cards").mkdir()
    agent = shop_workers.Carded(str(policy), cards)
    settings: dict[str, Any] = {"repeats": 4, "concurrency": 4}
    with pytest.raises(WorkerError, match="no machine of the Ray cluster has a graphics card"):
        run(LocalAgent(str(policy), device="cuda"), tmp_path / "none", workers=2, backend="ray", **settings)
    # Ray's word for it: nobody looks whether they are there.
    machine = cluster.add_node(num_cpus=2, num_gpus=2)
    try:
        found = run(agent, tmp_path / "run", workers=2, backend="ray", **settings)
    finally:
        cluster.remove_node(machine)
    assert found.summary["episodes"]["scored"] == 12
    seen = dict(path.name.split() for path in cards.iterdir())
    assert set(seen) == {"0", "1"}
    assert len(set(seen.values())) == 2
    run(agent, tmp_path / "one", workers=1, **settings)
    assert lines(tmp_path / "run") == lines(tmp_path / "one")


def test_keys_are_those_of_the_nodes_and_stand_nowhere(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = OpenAIAgent("m", base_url="http://127.0.0.1:9/v1", api_key_env="SHOP_KEY", max_attempts=1)
    found = run(agent, tmp_path / "run", workers=1, backend="ray", repeats=1, check=False)
    assert {failure.status for failure in found.failures} == {"provider_error"}
    session = Path(cluster.head_node.get_session_dir_path())
    files = [path for folder in (tmp_path, session / "logs") for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    monkeypatch.setenv("KEY_OF_THE_DRIVER", "sk-elsewhere")
    with pytest.raises(UsageError, match="no API key: set the environment variable KEY_OF_THE_DRIVER"):
        run(OpenAIAgent("m", api_key_env="KEY_OF_THE_DRIVER"), tmp_path / "other", workers=1, backend="ray")


# Last, since it leaves a node less.
def test_a_node_lost_midway_loses_nothing_and_plays_nothing_twice(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []
    places = tmp_path / "places"
    places.mkdir()

    def lose_a_node(episode: Finished) -> None:
        ended.append(episode.key)
        if len(ended) == 10:
            # One whose worker is at work: the other's may still be on its way. A worker outlives its node by moments,
            # in which it could play all that is left; this one plays no more.
            busy = next(node for node in cluster.nodes if (places / node.node_id).exists())
            (places / f"{busy.node_id} is lost").touch()
            cluster.remove_node(busy, allow_graceful=False)

    agent = shop_workers.Placed(places)
    found = run(agent, tmp_path / "run", backend="ray", repeats=20, on_done=lose_a_node)
    assert found.summary["episodes"] == {"planned": 60, "scored": 60, "errors": 0, "missing": 0}
    assert len(set(ended)) == len(ended) == 60
    assert sum("a worker process ended" in record.getMessage() for record in caplog.records) == 1
    run(shop_workers.Clerk(), tmp_path / "one", workers=1, repeats=20)
    assert lines(tmp_path / "run") == lines(tmp_path / "one")
    assert main(["leaderboard", "verify", str(tmp_path / "run"), "--trust", "shop_plugin"]) == 0
