"""Search strategies, one small file each; see :mod:`lora_autotune.strategy`."""
