"""The installed wheel alone: its loader finds every config that ships, without torch.

smoke.py FOLDER_OF_THE_CHECKOUT'S_CONFIGS
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import lora_autotune
from lora_autotune import get_lora_configs, get_lora_expand_config, get_lora_shrink_config
from lora_autotune.loader import ROOT_VARIABLE, clear_cache

NAME = re.compile(r"lora_(\w+),K=(\d+),R=(\d+),S=(\d+),device=(.+)\.json")

checkout = Path(sys.argv[1]).resolve()
installed = Path(lora_autotune.__file__)
assert checkout.parent not in installed.parents, f"not the wheel: {installed}"


def check_file(path: Path) -> None:
    """Everything in a config file is what a server is told."""
    match = NAME.fullmatch(path.name)
    assert match, f"{path.name} is not a config file's name"
    kernel, device = match[1], match[5]
    K, R, S = map(int, match.groups()[1:4])
    triton = path.parent.name.removeprefix("triton_").replace("_", ".")
    body = json.loads(path.read_text())
    table = get_lora_configs(kernel, K, R, S, device_name=device, triton_version=triton)
    assert table == {int(chunk): config for chunk, config in body.items()}, path
    get = get_lora_shrink_config if kernel == "shrink" else get_lora_expand_config
    for chunk, config in body.items():
        assert get(K, R, S, int(chunk), device_name=device, triton_version=triton) == config, path


beside = ".provenance.json"  # no lookup reads it
count = 0
trees = sorted(p.parent.relative_to(checkout) for p in checkout.rglob("csgmv_configs"))
assert Path() in trees, f"{checkout} holds no configs"
for tree in trees:
    if tree != Path():  # as README has it
        os.environ[ROOT_VARIABLE] = str(installed.parent / "configs" / tree)
        clear_cache()
    files = [p for p in checkout.glob(f"{tree}/csgmv_configs/*/*.json") if beside not in p.name]
    assert files, f"{checkout / tree} holds no configs"
    for path in files:
        check_file(path)
    count += len(files)

loaded = {"torch", "triton", "optuna", "numpy", "rich"} & set(sys.modules)
assert not loaded, f"the loader imported {loaded}"
print(f"{count} config files read from {installed.parent.name}, Python {sys.version.split()[0]}")
