"""Two processes that meet, until the second one fails: FOLDER. What each saw is left in a file of its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from fate_gym.trainers.processes import first_alone, is_first_process, meet, of_first, together

if __name__ == "__main__":
    folder, seen = Path(sys.argv[1]), dict[str, Any]()
    try:
        with together():
            seen["heard"] = of_first("by the first" if is_first_process() else "by another")
            with first_alone():
                seen["found"] = (folder / "made").exists()
                (folder / "made").touch()
            if not is_first_process():
                raise ValueError("wrong in\nthis process")
            meet()
    except Exception as error:
        seen["error"] = type(error).__name__, str(error)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
