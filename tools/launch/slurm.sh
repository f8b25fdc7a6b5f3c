#!/bin/bash
#SBATCH --job-name=cops_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
#
# Runs train.py on one or more nodes until it is done. Submit it from the project's
# folder, with its environment active:
#
#   sbatch --nodes=4 tools/launch/slurm.sh --config=visa --workdir=/shared/runs/visa
#
# Each GPU has its own process, because JAX assigns one GPU to each process under
# Slurm. For nodes with four GPUs, add --ntasks-per-node=4 --gpus-per-node=4.
#
# Slurm sends SIGTERM three minutes before the time limit. All processes then save
# the same step and end with exit code 75. If a process is killed, all other
# processes end with 75 too. In both cases the job is requeued and resumes. Any
# other error ends the job.
set -u

max_restarts=50
arguments=("$@")
if (( ${SLURM_NTASKS:-1} > 1 )); then
  arguments+=(--distributed)
fi
# On file systems without locks, the job takes over the lock of its killed process.
export COPS_JAX_JOB=${SLURM_JOB_ID:+slurm/$SLURM_JOB_ID}
srun --kill-on-bad-exit=0 python train.py "${arguments[@]}"
status=$?

# srun returns the highest exit code: 137 if a process was killed, and 134 if JAX
# aborted a process because another process was lost.
if (( status == 75 || status == 134 || status == 137 )); then
  if (( ${SLURM_RESTART_COUNT:-0} < max_restarts )); then
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "not requeued after $max_restarts restarts" >&2
  fi
fi
exit $status
