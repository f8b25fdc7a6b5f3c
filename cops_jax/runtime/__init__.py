"""What a program runs on: devices, processes, signals, random numbers."""
