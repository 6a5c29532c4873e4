"""The data files of benchmarks that the package does not ship: where they lie, and whether they are the right ones.

Only names, revisions and checksums stand here, never data. A file comes from the folder that `data_dir=` or the
benchmark's environment variable names; without either, from the cache of the Hugging Face hub, where
`fate-gym data fetch` puts it. Nothing is downloaded unless `fetch_data` is called.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fate_gym.errors import DataError
from fate_gym.task import DataPolicy

_log = logging.getLogger("fate_gym")

_PATIENCE: Final = 10.0
"""Seconds that the hub has to answer the first request."""

_CHECKSUM = re.compile("[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class DataFiles:
    """The files of one benchmark.

    Attributes:
        name: What `fate-gym data` calls it.
        variable: The environment variable that names a folder with the files.
        repo: The data set's id on the hub; where it is to be had otherwise, in words, if `revision` is None.
        revision: The commit there whose files these are; None where nothing is fetched, and a folder has to be named.
        checksums: File name in a folder -> SHA-256 in hex, or its first digits (at least 8) where no more is known, or
            None where nothing is.
        policy: What the licence and the authors allow.
        hub_folder: Where the files lie in the hub's repository; in a folder they may lie there or at its top.

    Raises:
        ValueError: A checksum is not 8 to 64 hex digits in lower case.
    """

    name: str
    variable: str
    repo: str
    revision: str | None
    checksums: Mapping[str, str | None]
    policy: DataPolicy
    hub_folder: str = ""

    def __post_init__(self) -> None:
        for name, checksum in self.checksums.items():
            if checksum is not None and not _CHECKSUM.fullmatch(checksum):
                raise ValueError(f"{self.name}, {name}: {checksum!r} is not 8 to 64 hex digits of a SHA-256")

    def hub_path(self, name: str) -> str:
        """Path of a file in the hub's repository."""
        return f"{self.hub_folder}/{name}" if self.hub_folder else name


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that was read.

    Attributes:
        path: Where it lies.
        content: Its bytes.
        sha256: Their SHA-256, in hex; belongs in `Benchmark.provenance`.
        verified: Whether that is the checksum on record.
    """

    path: Path
    content: bytes
    sha256: str
    verified: bool


def data_folder(data: DataFiles, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Returns the folder that `data_dir` or else the environment variable names; None where the hub's cache serves.

    Raises:
        DataError: The path is not a folder.
    """
    named = data_dir or os.environ.get(data.variable)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        source = "data_dir" if data_dir else data.variable
        raise DataError(f"{source} names {folder}, which is not a folder; it should hold {', '.join(data.checksums)}")
    return folder


def find_data(data: DataFiles, name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns where a file lies, without a look into it.

    Raises:
        DataError: It is not there; the message says what to do.
    """
    folder = data_folder(data, data_dir)
    if folder is None:
        path = _in_cache(data, name)
        where = f"no {name} of {data.name} on this machine"
    else:
        places = (folder / name, folder / data.hub_path(name))
        path = next((place for place in places if place.is_file()), None)
        where = f"{folder} has no {name}"
    if path is None:
        if data.revision is None:
            raise DataError(
                f"{where}: take it from {data.repo}, and let data_dir= or {data.variable} name a folder with it"
            )
        raise DataError(
            f"{where}: run `fate-gym data fetch {data.name}`, or let data_dir= or {data.variable} name a folder with it"
        )
    return path


def read_data(data: DataFiles, name: str, data_dir: str | os.PathLike[str] | None = None) -> DataFile:
    """Reads a file and compares its checksum; one that differs is warned of in a folder, and refused from the hub.

    Args:
        data: The benchmark's files.
        name: One of them; a name without a checksum on record is warned of as one that differs.
        data_dir: A folder, instead of the one that the environment variable names.

    Raises:
        DataError: It is missing or unreadable, or came from the hub and is not the file on record.
    """
    path = find_data(data, name, data_dir)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    verified = is_on_record(data, name, sha256)
    if not verified:
        differs = f"{path} is not the {name} on record for {data.name} (SHA-256 {sha256[:8]}...)"
        if data.checksums.get(name, "") is None:
            differs = f"{path} has no checksum on record for {data.name} (SHA-256 {sha256[:8]}...)"
        if data_folder(data, data_dir) is None:
            raise DataError(f"{differs}: delete it and run `fate-gym data fetch {data.name}`")
        _warn_once(f"{differs}: results are not comparable")
    return DataFile(path, content, sha256, verified)


def is_on_record(data: DataFiles, name: str, sha256: str) -> bool:
    """Whether a SHA-256 is the one on record, as far as its digits are known."""
    expected = data.checksums.get(name)
    return expected is not None and sha256.startswith(expected)


def fetch_data(data: DataFiles, name: str, out: Path | None = None) -> Path:
    """Downloads a file from the hub at the pinned revision, into the hub's cache or a folder.

    Args:
        data: The benchmark's files.
        name: One of `data.checksums`.
        out: The folder; None for the cache.

    Returns:
        Where it lies.

    Raises:
        DataError: It is not to be had from the hub, there is no `huggingface_hub`, the hub does not give the file, or
            it is not the one on record.
    """
    if data.revision is None:
        raise DataError(f"{data.name} is not fetched: take {name} from {data.repo}")
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError as error:
        raise DataError("fetching data needs one more package: pip install huggingface_hub") from error
    place = data.hub_path(name)
    try:
        cached = _in_cache(data, name)
        if cached is None:
            # One request without retries, of which the download makes many: a hub out of reach is told at once.
            url = hf_hub_url(data.repo, place, repo_type="dataset", revision=data.revision)
            get_hf_file_metadata(url, timeout=_PATIENCE)
            cached = Path(hf_hub_download(data.repo, place, repo_type="dataset", revision=data.revision))
        sha256 = hashlib.sha256(cached.read_bytes()).hexdigest()
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{data.repo} did not give {name}: {type(error).__name__}: {reason}; where the hub cannot be reached, copy "
            f"the files into a folder and let {data.variable} name it"
        ) from error
    if not is_on_record(data, name, sha256):
        raise DataError(f"{data.repo} gave a {name} that is not the one on record (SHA-256 {sha256[:8]}...): {cached}")
    if out is None:
        return cached
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(cached, path)
    return path


@functools.cache
def _warn_once(line: str) -> None:
    """Says something once a process, however many environments are made."""
    _log.warning(line)


def _in_cache(data: DataFiles, name: str) -> Path | None:
    if data.revision is None:
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    cached = try_to_load_from_cache(data.repo, data.hub_path(name), repo_type="dataset", revision=data.revision)
    return Path(cached) if isinstance(cached, str) else None


AGENTHARM: Final = DataFiles(
    name="agentharm",
    variable="FATE_GYM_AGENTHARM_DIR",
    repo="ai-safety-institute/AgentHarm",
    revision="e23b3fe60a0da9037314b88e5ee3a0c054970dad",
    checksums={
        "harmful_behaviors_test_public.json": "fc3e4abb",
        "benign_behaviors_test_public.json": "65b4ebd4",
        "chat_public_test.json": "699a8325",
        "harmful_behaviors_validation.json": "40cd099915258b41142acfc88a9f2b4e15cd631c5490ad02a0dce0cf2b9c175e",
        "benign_behaviors_validation.json": "b74ffb781ce54182775a8b2843ea341ab2fb4cfea5743bfa89a368e52a76c27a",
        "chat_validation.json": "06684a6968e0bb65bcb15bc1cdaf3bd8c486fc54164e7623a35e3ee58bf93565",
    },
    policy=DataPolicy(
        licence="MIT with an additional clause",
        training=False,
        note="AgentHarm may be used only to improve the safety and security of AI systems, and its authors ask not to "
        "train on any of its examples (AgentAlign is made for that).",
    ),
    hub_folder="benchmark",
)
"""AgentHarm (Andriushchenko et al., 2024)."""

ATBENCH: Final = DataFiles(
    name="atbench",
    variable="FATE_GYM_ATBENCH_DIR",
    repo="AI45Research/ATBench",
    revision="4476ef92ed8f85c8d58d8a5b9dfdf55aa7893138",
    checksums={"ATBench/test.json": "80c534b5f3517c87", "ATBench500/test.json": "031285443c6b8ca6"},
    policy=DataPolicy(
        licence="Apache-2.0",
        training=False,
        note="ATBench is a test set; what its authors offer for training is AgentDoG1.0-Training-Data.",
    ),
)
"""ATBench and ATBench500 (AI45Research, 2026)."""

ATBENCH300: Final = DataFiles(
    name="atbench300",
    variable="FATE_GYM_ATBENCH_DIR",
    repo="the data set AI45Research/2026_summer_camp_teseset",
    revision=None,
    checksums={"summer_camp_ATBench300.json": None},
    policy=ATBENCH.policy,
)
"""300 rows of ATBench in a schema of their own."""

RJUDGE: Final = DataFiles(
    name="rjudge",
    variable="FATE_GYM_RJUDGE_DIR",
    repo="Lordog/R-Judge, or AgentAuditor/data of Astarojth/AgentAuditor-ASSEBench, both on GitHub",
    revision=None,
    checksums={"rjudge.json": "523efcafdb167c8d3ed03aebc196e662f42b75c76eef622dfd32cee9a35ebbca"},
    policy=DataPolicy(
        licence="none stated",
        training=False,
        note="R-Judge is a test set, and we know of no licence: its texts are for your own use, not to be published.",
    ),
)
"""R-Judge (Yuan et al., 2024); the checksum is that of ASSEBench's copy, 564 records."""

ASSEBENCH: Final = DataFiles(
    name="assebench",
    variable="FATE_GYM_ASSEBENCH_DIR",
    repo="ASSEBench/dataset of Astarojth/AgentAuditor-ASSEBench on GitHub",
    revision=None,
    checksums={
        "AgentJudge-strict.json": None,
        "AgentJudge-loose.json": None,
        "AgentJudge-safety.json": None,
        "AgentJudge-security.json": "4db9e5c976d0ed35f11b97afcd697259b4954e776777c150f03b3cab5ba31a57",
    },
    policy=DataPolicy(
        licence="Apache-2.0",
        training=False,
        note="ASSEBench is a test set; what its authors allow beyond their licence is not known.",
    ),
)
"""ASSEBench (Luo et al., 2025), at the state of June 2025."""

DATA: Final = {data.name: data for data in (AGENTHARM, ATBENCH, ATBENCH300, RJUDGE, ASSEBENCH)}
"""The benchmarks whose data `fate-gym data` knows."""
