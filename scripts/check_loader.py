"""Does an installed package read every shipped config? check_loader.py CONFIGS; stdlib only."""

import json
import re
import sys
from pathlib import Path

from lora_autotune import get_lora_configs

NAME = re.compile(r"lora_(\w+),K=(\d+),R=(\d+),S=(\d+),device=(.+)\.json")


def main() -> None:
    """Exit with a message for the first difference."""
    files = sorted(Path(sys.argv[1]).glob("csgmv_configs/triton_*/*.json"))
    if not files:
        sys.exit("no shipped configs to read")
    for file in files:
        kernel, *sizes, device = NAME.fullmatch(file.name).groups()
        version = file.parent.name.removeprefix("triton_").replace("_", ".")
        table = get_lora_configs(
            kernel, *map(int, sizes), device_name=device, triton_version=version
        )
        expected = {int(chunk): config for chunk, config in json.loads(file.read_text()).items()}
        if table != expected:
            sys.exit(f"{file.name}: the loader says {table}")
    heavy = {"torch", "triton", "optuna", "numpy", "rich"} & set(sys.modules)
    if heavy:
        sys.exit(f"the loader imported {heavy}")
    print(f"{len(files)} shipped files, read as they are by the wheel alone")


main()
