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
# train.py on one node or several, until it is done. Each GPU has a process of its
# own: under Slurm, JAX gives each process one. On nodes of four GPUs, add
# --ntasks-per-node=4 --gpus-per-node=4.
#
#   sbatch --nodes=4 tools/launch/slurm.sh --config=visa --workdir=/shared/runs/visa
#
# from the project's folder, with its environment active. Three minutes before
# the time is over, Slurm sends SIGTERM: all processes save the same step and end
# with exit code 75. A process that is killed ends the others with 75 too. In both
# cases the job is put back into the queue, and resumes. Any other error
# ends it.
set -u

max_restarts=50
arguments=("$@")
if (( ${SLURM_NTASKS:-1} > 1 )); then
  arguments+=(--distributed)
fi
# Where file systems have no locks, the job takes over that of its killed process.
export COPS_JAX_JOB=${SLURM_JOB_ID:+slurm/$SLURM_JOB_ID}
srun --kill-on-bad-exit=0 python train.py "${arguments[@]}"
status=$?

# Of several exit codes srun gives the highest: 137 is a killed process's, 134 that
# of one that JAX ended as another was lost.
if (( status == 75 || status == 134 || status == 137 )); then
  if (( ${SLURM_RESTART_COUNT:-0} < max_restarts )); then
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "not put into the queue again after $max_restarts times" >&2
  fi
fi
exit $status
