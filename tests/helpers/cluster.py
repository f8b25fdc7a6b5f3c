"""Several processes of train.py or eval.py as one cluster on this host."""

import socket
import subprocess
import sys

from helpers.scripts import ROOT, environment


def free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def start_cluster(num_processes, num_devices, script, *arguments):
  """Starts a script in several processes of that many devices each."""
  address = f"--coordinator_address=127.0.0.1:{free_port()}"
  return [
    subprocess.Popen(
      [
        *(sys.executable, script, *map(str, arguments), address),
        f"--num_processes={num_processes}",
        f"--process_id={index}",
      ],
      cwd=ROOT,
      env=environment(num_devices),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(num_processes)
  ]


def end_cluster(processes):
  """Exit codes and messages."""
  results = [process.communicate(timeout=300) for process in processes]
  codes = [process.returncode for process in processes]
  return codes, [err for _, err in results]
