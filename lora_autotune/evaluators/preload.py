"""What the fork server imports once, so that a worker starts in milliseconds. No CUDA context."""

import lora_autotune.evaluators.compiling
import lora_autotune.evaluators.measuring  # noqa: F401
