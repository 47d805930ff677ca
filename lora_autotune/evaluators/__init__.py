"""What evaluates configs: the GPU of this machine, or a recording of another."""
