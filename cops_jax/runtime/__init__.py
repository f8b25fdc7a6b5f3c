"""The runtime: devices, processes, signals and random numbers."""
