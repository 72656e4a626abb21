#!/usr/bin/env bash
# One run on all machines of a Cloud TPU slice that exists and has this project in ~/linseed on every worker:
#   scripts/launch/tpu.sh NAME ZONE configs/imagenet_resnet50.py runs/r50
# The workdir, within ~/linseed unless it begins with /, is that of worker 0, or of a disk that outlives the slice.
# JAX finds the workers by itself.
set -uo pipefail
name=$1 zone=$2 config=$3 workdir=$4

command="cd ~/linseed && .venv/bin/python -u -m scripts.train --config=$config --workdir=$workdir"
for attempt in 1 2 3 4 5; do
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
  status=$?
  # gcloud gives the status of one of the workers. 0: done; 2: the config or the data is wrong. Else on from the last snapshot.
  case $status in 0 | 2) exit "$status" ;; esac
  echo "attempt $attempt ended with status $status; starting again" >&2
  sleep 60 # a lost worker is noticed by all within that time
done
exit "$status"
