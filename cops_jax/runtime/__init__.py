"""Devices, processes, signals and random numbers."""
