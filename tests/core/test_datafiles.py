"""Data files: where they are found, what is said of a wrong one, and downloads from a hub on the loopback interface."""

from __future__ import annotations

import builtins
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, hub_server

from fate_gym.datafiles import DATA, DataFiles, data_folder, fetch_data, find_data, is_on_record, read_data
from fate_gym.errors import DataError
from fate_gym.task import DataPolicy

CONTENT = b'{"behaviors": [1, 2]}'
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SHOP = DataFiles(
    name="shop",
    variable="FATE_GYM_SHOP_DIR",
    repo="harbour/shop",
    revision="0" * 40,
    checksums={"parcels.json": SHA256, "crates.json": SHA256[:8]},
    policy=DataPolicy(licence="MIT", training=False, note="For tests."),
    hub_folder="benchmark",
)
AT = f"harbour/shop/resolve/{'0' * 40}/benchmark"


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHOP.variable, raising=False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_server(monkeypatch, tmp_path / "cache") as running:
        running.files = {f"{AT}/parcels.json": CONTENT, f"{AT}/crates.json": CONTENT}
        yield running


def test_the_argument_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, named = tmp_path / "given", tmp_path / "named"
    for folder in (given, named):
        folder.mkdir()
    monkeypatch.setenv(SHOP.variable, str(named))
    assert data_folder(SHOP) == named
    assert data_folder(SHOP, given) == given
    monkeypatch.delenv(SHOP.variable)
    assert data_folder(SHOP) is None


def test_a_file_lies_at_the_top_of_a_folder_or_where_the_hub_has_it(tmp_path: Path) -> None:
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "parcels.json").write_bytes(CONTENT)
    assert find_data(SHOP, "parcels.json", tmp_path) == tmp_path / "benchmark" / "parcels.json"
    (tmp_path / "parcels.json").write_bytes(CONTENT)
    assert find_data(SHOP, "parcels.json", tmp_path) == tmp_path / "parcels.json"


def test_the_right_file_is_read_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "crates.json").write_bytes(CONTENT)
    file = read_data(SHOP, "crates.json", tmp_path)
    assert (file.content, file.sha256, file.verified) == (CONTENT, SHA256, True)
    assert caplog.records == []


@pytest.mark.parametrize("name", ["parcels.json", "unknown.json"])
def test_a_folder_may_hold_another_file_and_one_line_says_so(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(b"[]")
    assert not read_data(SHOP, name, tmp_path).verified
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("fate_gym", logging.WARNING)
    assert f"{tmp_path / name} is not the {name} on record for shop" in record.getMessage()


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as caught:
        read_data(SHOP, "parcels.json", tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no parcels.json: run `fate-gym data fetch shop`, "
        "or let data_dir= or FATE_GYM_SHOP_DIR name a folder with it"
    )
    monkeypatch.setenv(SHOP.variable, str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"FATE_GYM_SHOP_DIR names .*nowhere, which is not a folder"):
        read_data(SHOP, "parcels.json")
    with pytest.raises(DataError, match="data_dir names"):
        read_data(SHOP, "parcels.json", tmp_path / "elsewhere")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parcels.json").write_bytes(CONTENT)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"parcels.json cannot be read: Permission denied"):
        read_data(SHOP, "parcels.json", tmp_path)


def test_nothing_is_downloaded_unasked(hub: Hub) -> None:
    with pytest.raises(DataError, match=r"no parcels.json of shop on this machine: run `fate-gym data fetch shop`"):
        read_data(SHOP, "parcels.json")
    assert hub.requests == []


def test_what_was_fetched_is_read_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    path = fetch_data(SHOP, "parcels.json")
    assert path.is_relative_to(tmp_path / "cache")
    assert f"GET /datasets/{AT}/parcels.json" in hub.requests
    hub.files.clear()
    assert read_data(SHOP, "parcels.json").content == CONTENT


def test_fetching_into_a_folder(hub: Hub, tmp_path: Path) -> None:
    assert fetch_data(SHOP, "crates.json", tmp_path / "out") == tmp_path / "out" / "crates.json"
    assert read_data(SHOP, "crates.json", tmp_path / "out").verified


def test_another_file_from_the_hub_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files[f"{AT}/parcels.json"] = b"[]"
    with pytest.raises(DataError, match=r"harbour/shop gave a parcels.json that is not the one on record"):
        fetch_data(SHOP, "parcels.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="delete it and run `fate-gym data fetch shop`"):
        read_data(SHOP, "parcels.json")


def test_a_hub_without_the_file_is_one_line(hub: Hub) -> None:
    hub.files.clear()
    with pytest.raises(DataError, match=r"harbour/shop did not give parcels.json: \w+NotFoundError") as caught:
        fetch_data(SHOP, "parcels.json")
    assert "\n" not in str(caught.value)


def test_without_the_hub_s_client_folders_still_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without_hub(name: str, *arguments: Any, **kwargs: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(name)
        return load(name, *arguments, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_hub)
    with pytest.raises(DataError, match="pip install huggingface_hub"):
        fetch_data(SHOP, "parcels.json")
    with pytest.raises(DataError, match="on this machine"):
        read_data(SHOP, "parcels.json")
    (tmp_path / "parcels.json").write_bytes(CONTENT)
    assert read_data(SHOP, "parcels.json", tmp_path).verified


@pytest.mark.parametrize("checksum", ["", SHA256[:7], SHA256 + "0", SHA256.upper(), "not hex digits"])
def test_checksums_are_hex_digits(checksum: str) -> None:
    with pytest.raises(ValueError, match="8 to 64 hex digits"):
        DataFiles("shop", "X", "a/b", "0", {"parcels.json": checksum}, DataPolicy("MIT", training=False))


def test_a_prefix_is_compared_as_far_as_it_goes() -> None:
    assert is_on_record(SHOP, "crates.json", SHA256)
    assert not is_on_record(SHOP, "crates.json", "0" * 64)
    assert not is_on_record(SHOP, "unknown.json", SHA256)


def test_what_the_package_knows_may_not_be_trained_on() -> None:
    assert set(DATA) == {"agentharm", "atbench", "atbench300", "rjudge", "assebench"}
    for data in DATA.values():
        assert not data.policy.training
        assert data.policy.note
        assert data.revision is None or len(data.revision) == 40
