#!/usr/bin/env bash
# The studies of docs/study.md at D 64 on ML-100K and Beauty, one after another; the same command again goes on.
#
#     DATA=DIR MINUTES=M SEEDS=3 PYTHON=.venv/bin/python bash benchmarks/study/queue.sh [DATASET/STUDY ...]
#
# DATA: folder of the logs; without it the official files are downloaded. MINUTES: after which no other cell of a study
# begins; without it each study runs to its end. Several of these may run at once, each on cores of its own.
set -uo pipefail
cd "$(dirname "$0")/../.."

ALL="amazon-beauty/recipe ml-100k/recipe ml-100k/overall amazon-beauty/overall amazon-beauty/components
     ml-100k/components amazon-beauty/packing amazon-beauty/beta amazon-beauty/mask_ratio amazon-beauty/max_length
     amazon-beauty/layers amazon-beauty/backward_order ml-100k/efficiency ml-100k/packing"
# What prefixes of whole histories cost is seen on those of the most active users, here nine.
EFFICIENCY="--set=data.min_user_interactions=450 --set=data.min_item_interactions=1"
failed=0
for entry in ${*:-$ALL}; do
    dataset=${entry%/*} study=${entry#*/}
    echo "=== $entry"
    own=
    [ "$study" = efficiency ] && own=$EFFICIENCY
    "${PYTHON:-python3}" -m experiments.study --dataset="$dataset" --study="$study" --seeds="${SEEDS:-3}" \
        ${DATA:+--data_dir="$DATA"} ${MINUTES:+--minutes="$MINUTES"} \
        --output="benchmarks/results/study/$entry" --runs="runs/study/$entry" --set=model.hidden_size=64 $own
    code=$?
    [ "$code" -ge 128 ] && exit "$code"  # a signal ends the queue, a cell that failed does not
    [ "$code" -ne 0 ] && failed=1
done
exit "$failed"
