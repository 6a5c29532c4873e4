"""The one layer that touches the disk: files stay whole when their writer is killed, and are read with care.

Run folders and trainings are both built from it: files that are replaced atomically, logs to which whole lines are
appended, a lock for their one writer, digests, and readers that answer every damage with an error that names the place.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fate_gym.storage._atomic import make_folder, native_disk_errors, replace_file, replacing, sync_tree
from fate_gym.storage._digest import file_digest, folder_digest
from fate_gym.storage._json import MAX_DEPTH, SURROGATE, digest, dump, encode_line, parse
from fate_gym.storage._lock import LOCK_FILE, WriterLock
from fate_gym.storage._log import BEGINNING, MAX_LINE, AppendLog, Place, corrupt, lines, placed_records, records
from fate_gym.storage._reading import Fields, cut, is_finite, open_file, read_file, read_object
from fate_gym.storage._settings import check_same_settings, settings_apart

if TYPE_CHECKING:
    from fate_gym.storage._yaml import parse_yaml, read_yaml

__all__ = [
    "BEGINNING",
    "LOCK_FILE",
    "MAX_DEPTH",
    "MAX_LINE",
    "SURROGATE",
    "AppendLog",
    "Fields",
    "Place",
    "WriterLock",
    "check_same_settings",
    "corrupt",
    "cut",
    "digest",
    "dump",
    "encode_line",
    "file_digest",
    "folder_digest",
    "is_finite",
    "lines",
    "make_folder",
    "native_disk_errors",
    "open_file",
    "parse",
    "parse_yaml",
    "placed_records",
    "read_file",
    "read_object",
    "read_yaml",
    "records",
    "replace_file",
    "replacing",
    "settings_apart",
    "sync_tree",
]


def __getattr__(name: str) -> Any:
    """Loads the readers of YAML on first use: `import fate_gym` must not load PyYAML."""
    if name in ("parse_yaml", "read_yaml"):
        return getattr(import_module("fate_gym.storage._yaml"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
