#!/usr/bin/env bash
# One study by an array of jobs, each of them a worker:
#
#   export STORAGE=postgresql+psycopg2://user:password@host/studies MLFLOW_TRACKING_URI=http://host:5000
#   sbatch --array=0-15 examples/many-machines/slurm.sh
#
# A job that reaches its time limit gets a SIGTERM a minute before, ends its trial, and the others make it up.
#SBATCH --job-name=lrfinder-search
#SBATCH --array=0-15
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
set -euo pipefail

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
exec lrfinder search \
    --task="${TASK:-digits}" \
    --n-trials="${N_TRIALS:-256}" \
    --study-name="${STUDY:-digits}" \
    --storage="$STORAGE"
