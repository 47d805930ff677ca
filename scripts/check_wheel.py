"""Does a built distribution hold what it should? check_wheel.py WHEEL SDIST."""

import sys
import tarfile
import zipfile

WHEEL = (
    "lora_autotune/loader.py",
    "lora_autotune/py.typed",
    "lora_autotune/strategies/tpe.py",
    "lora_autotune/configs/csgmv_configs/triton_3_6_0/",
    "lora_autotune/configs/landscapes/",
)


def main() -> None:
    """Exit with a message for the first thing that is missing or too much."""
    wheel_path, sdist_path = sys.argv[1:]
    wheel = zipfile.ZipFile(wheel_path).namelist()
    with tarfile.open(sdist_path) as archive:
        sdist = archive.getnames()
    for part in WHEEL:
        if not any(name.startswith(part) for name in wheel):
            sys.exit(f"the wheel lacks {part}")
        if not any(part in f"{name}/" for name in sdist):
            sys.exit(f"the sdist lacks {part}")
    stray = [name for name in wheel if name.startswith(("tests/", "scripts/", "strategies/"))]
    if stray:
        sys.exit(f"the wheel holds {stray[0]}")
    print(f"{len(wheel)} files in the wheel, as they should be")


main()
