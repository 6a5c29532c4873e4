"""Coverage-guided fuzzing by atheris: `python coverage_guided.py TARGET [libFuzzer's options]`; `make fuzz` visits all.

Atheris instruments the package, so that libFuzzer sees which bytes reach new code and goes on from those. A finding is
written to `findings/TARGET/`, where `test_fuzz.py` tries it ever after.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

_HERE = Path(__file__).parent


def main(name: str, *options: str) -> None:
    sys.path[:0] = [str(_HERE), str(_HERE.parent / "support")]
    os.environ["PYTHONWARNINGS"] = "ignore"
    with atheris.instrument_imports(include=["fate_gym"]):
        import targets

        target = targets.BY_NAME[name]
        seeds = target.seeds()
        for seed in seeds:
            target.check(seed)
    corpus = Path(tempfile.mkdtemp(prefix=f"corpus-{name}-"))
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    findings = _HERE / "findings" / name
    findings.mkdir(parents=True, exist_ok=True)
    limits = ["-timeout=20", "-rss_limit_mb=4096", f"-artifact_prefix={findings}/"]
    atheris.Setup([sys.argv[0], *limits, *options, str(corpus)], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
