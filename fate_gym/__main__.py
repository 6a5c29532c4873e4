"""`python -m fate_gym` is `fate-gym`."""

import sys

from fate_gym.cli.main import run_program

if __name__ == "__main__":
    sys.exit(run_program())
