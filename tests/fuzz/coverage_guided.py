"""Coverage-guided fuzzing by atheris: `python coverage_guided.py SECONDS [TARGET ...]`, or `make fuzz`.

Atheris instruments the package, so that libFuzzer sees which bytes reach new code and goes on from those. A finding is
written to `findings/TARGET/`, where `test_fuzz.py` tries it ever after.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "support")]


def fuzz(name: str, seconds: str) -> None:
    """Fuzzes one target; libFuzzer ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["fate_gym"]):
        import targets

        target = targets.BY_NAME[name]
        seeds = target.seeds()
        for seed in seeds:
            target.check(seed)
    from mutations import TOKENS

    scratch = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    corpus = scratch / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = ("".join(f"\\x{byte:02x}" for byte in token) for token in TOKENS if len(token) < 64)
    (scratch / "words").write_text("".join(f'"{word}"\n' for word in words))
    findings = _HERE / "findings" / name
    findings.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        "-timeout=60",
        "-rss_limit_mb=4096",
        f"-dict={scratch / 'words'}",
        f"-artifact_prefix={findings}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.check)
    atheris.Fuzz()


def main(seconds: str, *names: str) -> None:
    """Fuzzes targets one after another, each in a process of its own, and says what came of it."""
    from targets import BY_NAME

    failed = []
    for name in names or BY_NAME:
        command = [sys.executable, "-W", "ignore", __file__, "--one", name, seconds]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        runs = re.search(r"Done (\d+) runs", done.stderr)
        reached = re.findall(r"cov: (\d+)", done.stderr)
        print(f"{name}: {runs[1] if runs else 0} runs, {reached[-1] if reached else 0} branches reached", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout[-3000:], done.stderr[-3000:], sep="\n")
    print(f"findings in: {', '.join(failed) or 'no target'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        os.environ["PYTHONWARNINGS"] = "ignore"
        fuzz(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
