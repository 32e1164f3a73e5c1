#!/usr/bin/env bash
# One Ray node per Slurm node, the recipe on the first: sbatch --nodes=4 --gpus-per-node=8 cluster/slurm.sh KEY=VALUE …
#SBATCH --job-name=raysurl
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
token=$(mktemp -p "$PWD") && chmod 600 "$token" && openssl rand -hex 32 >"$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_ADDRESS=$head:6379
trap 'rm -f "$token"' EXIT
srun --nodes=1 --ntasks=1 -w "$head" env -u RAY_ADDRESS .venv/bin/ray start --head --port=6379 --block &
sleep 20
workers=$((SLURM_JOB_NUM_NODES - 1))
((workers == 0)) || srun --nodes=$workers --ntasks=$workers --exclude="$head" .venv/bin/ray start --address="$RAY_ADDRESS" --block &
sleep 20
srun --overlap --nodes=1 --ntasks=1 -w "$head" .venv/bin/python pipelines/pretrain.py "$@"
