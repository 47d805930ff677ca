"""Workers start here from a server that has torch already: hundreds of them, two seconds each.

What runs in a process of its own starts as a tuner does.
"""

from lora_autotune.evaluators import worker

worker.PRELOADED += ("lora_autotune.evaluators.measuring",)
