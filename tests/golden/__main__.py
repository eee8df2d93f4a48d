"""``python -m tests.golden FILE...``: replays reference files from their own meta."""

import os
import sys
from pathlib import Path

# What has clients runs along a mesh too. JAX reads it when it is imported.
DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()

from tests.golden.replay import DATA, replay  # noqa: E402


def main(arguments: list[str]) -> int:
    """Replays the files (default: all stored ones); returns 1 if one fails or is unknown."""
    files = [Path(name) for name in arguments] or sorted(DATA.glob("*.npz"))
    if not files:
        print(f"no files in {DATA}")
        return 1
    results = [replay(file) for file in files]
    for result in results:
        print(result)
    return 0 if all(result.verdict == "PASS" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
