#!/usr/bin/env bash
# One training by several GPUs of several machines, 2 x 4 here:
#
#   sbatch examples/many-machines/torchrun.sh
#
# On one machine, with or without SLURM: NODES=1 GPUS=4 bash examples/many-machines/torchrun.sh
#SBATCH --job-name=lrfinder-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
set -euo pipefail

nodes="${SLURM_NNODES:-${NODES:-1}}"
if [ "$nodes" = 1 ]; then
    launch=()
    where=(--standalone)
else
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    launch=(srun)
    where=(--rdzv-backend=c10d --rdzv-endpoint="$first:29500" --rdzv-id="$SLURM_JOB_ID")
fi
exec "${launch[@]}" torchrun --nnodes="$nodes" --nproc-per-node="${GPUS:-4}" "${where[@]}" \
    -m lrfinder "${COMMAND:-train}" --task="${TASK:-digits}" --device="${DEVICE:-auto}"
