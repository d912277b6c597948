#!/bin/bash
# One call a machine. NODES, NODE_RANK and HEAD (host of rank 0) come from whatever starts the machines.
set -u
NODES=${NODES:-1} NODE_RANK=${NODE_RANK:-0} HEAD=${HEAD:-localhost} GPUS=${GPUS:-8}
CONFIG=${CONFIG:-configs/image/titok_l32_stage1.yaml} PORT=${PORT:-29500}
# a store of its own for every start: in the shared one, processes that start again find the addresses of dead ones
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 TORCH_FR_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1

# --max-restarts: after a death or a hang (exit code 124) all ranks start again from last.ckpt
exec torchrun --nnodes "$NODES" --node-rank "$NODE_RANK" --nproc-per-node "$GPUS" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" --rdzv-id mmtok \
  train.py fit -c "$CONFIG" -c configs/base/slurm.yaml --trainer.num_nodes "$NODES" --trainer.devices "$GPUS" "$@"
