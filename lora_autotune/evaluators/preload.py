"""What the fork server imports once, so that compile workers start in milliseconds: no torch."""

import lora_autotune.evaluators.bench_jobs
import lora_autotune.evaluators.compiling
import lora_autotune.evaluators.driver  # noqa: F401
