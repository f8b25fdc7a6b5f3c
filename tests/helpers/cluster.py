"""Clusters of several processes of a script on this host."""

import socket

from helpers.scripts import Program


def free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def start_cluster(num_processes, num_devices, script, *arguments):
  """Starts a script in one or more processes with `num_devices` each."""
  cluster = [[]]
  if num_processes > 1:
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    cluster = [
      [address, f"--num_processes={num_processes}", f"--process_id={index}"]
      for index in range(num_processes)
    ]
  return [
    Program(script, *arguments, *place, num_devices=num_devices)
    for place in cluster
  ]


def end_cluster(processes):
  """Waits for the processes; returns their exit codes and messages."""
  results = [process.communicate() for process in processes]
  codes = [process.returncode for process in processes]
  return codes, [err for _, err in results]
