#!/usr/bin/env bash
# The studies of docs/comparisons.md at D 64, one after another; the same command again goes on.
#
#     DATA=DIR KUAIRAND_LIKE=DIR MINUTES=M SEEDS=3 PYTHON=.venv/bin/python bash benchmarks/study/queue.sh [LOG/STUDY ...]
#
# DATA: folder of the logs; without it the official files are downloaded. KUAIRAND_LIKE: folder of a log of KuaiRand's
# form; without it the entries of kuairand-like are left out. MINUTES: after which no other cell or trial of an entry
# begins; without it each runs to its end, and 0 writes its tables anew. Several of these may run at once, each on cores
# of its own. LOG/tuned searches 5 trials for each network that has none in searched/, and then runs the recipe with
# what was found.
set -uo pipefail
cd "$(dirname "$0")/../.."

ALL="amazon-beauty/recipe ml-100k/recipe amazon-video-games/recipe kuairand-like/recipe
     amazon-beauty/tuned ml-100k/tuned amazon-video-games/tuned kuairand-like/tuned
     amazon-beauty/overall ml-100k/overall amazon-video-games/overall kuairand-like/overall
     ml-100k/packing ml-100k/components amazon-beauty/packing amazon-beauty/components
     ml-100k/beta ml-100k/mask_ratio ml-100k/max_length ml-100k/layers ml-100k/backward_order
     ml-100k/efficiency ml-100k/packing-seconds amazon-beauty/packing-seconds amazon-beauty/overall-seconds
     amazon-beauty/levers amazon-video-games/levers kuairand-like/levers"

own_flags() {
    case $1 in
        # A pass that all prefixes share makes minutes of hours; it needs the backward direction in the last layer alone.
        ml-100k/beta | ml-100k/mask_ratio | ml-100k/layers | ml-100k/backward_order)
            echo --set=train.objective=one_pass --set=model.bidirectional=last ;;
        ml-100k/max_length) echo --set=train.objective=truncated --set=model.bidirectional=last ;;
        # What prefixes of whole histories cost is seen on those of the most active users, here nine.
        ml-100k/efficiency) echo --seeds=1 --set=data.min_user_interactions=450 --set=data.min_item_interactions=1 ;;
        ml-100k/packing-seconds) echo --seeds=1 --set=train.max_epochs=2 ;;
        amazon-beauty/*-seconds) echo --seeds=1 --set=train.max_epochs=1 ;;
        kuairand-like/*) echo --set=train.max_epochs=1 ;;
        */levers) echo --set=train.max_epochs=24 ;;
    esac
    case $1 in
        */levers) echo --studies=benchmarks/study/levers.toml ;;
    esac
}

study() {  # NAME FLAGS ...: a study of the entry's log
    local dataset=$log data=${DATA:-}
    [ "$log" = kuairand-like ] && dataset=kuairand data=$KUAIRAND_LIKE
    "${PYTHON:-python3}" -m experiments.study --study="$1" --dataset="$dataset" ${data:+--data_dir="$data"} \
        --seeds="${SEEDS:-3}" --set=model.hidden_size=64 ${MINUTES:+--minutes="$MINUTES"} $(own_flags "$entry") "${@:2}"
    code=$?
    [ "$code" -ge 128 ] && exit "$code"  # a signal ends the queue, a study that failed does not
    [ "$code" -ne 0 ] && failed=1
}

rows() {  # rankings that count, and the networks for which a search found settings
    echo -n popularity,transition,item-knn
    for file in "$results"/searched/*/tuned.json; do
        [ -e "$file" ] && echo -n ",$(basename "$(dirname "$file")")"
    done
}

tuned() {
    local missing= row space=
    for row in ssd4rec-best mamba4rec lrurec sasrec gru4rec ssd4rec-plain; do
        [ -e "$results/searched/$row/tuned.json" ] || missing+=${missing:+,}$row
    done
    if [ -n "$missing" ] && [ "${MINUTES:-}" != 0 ]; then
        [ "$log" = kuairand-like ] && space=--space=benchmarks/study/many_targets.toml
        study recipe --tune=5 --rows="$missing" $space --output="runs/study/$entry-search"
        for file in "runs/study/$entry-search/tuned"/*/tuned.json; do
            [ -e "$file" ] || continue
            row=$results/searched/$(basename "$(dirname "$file")")
            mkdir -p "$row" && cp "$(dirname "$file")/best.toml" "$file" "$row"
        done
    fi
    study recipe --tuned="$results/searched" --rows="$(rows)" "$@"
}

failed=0
for entry in ${*:-$ALL}; do
    log=${entry%/*} name=${entry#*/} results=benchmarks/results/study/$entry
    [ "$log" = kuairand-like ] && [ -z "${KUAIRAND_LIKE:-}" ] && continue
    echo "=== $entry"
    there="--output=$results --runs=runs/study/$entry"
    case $name in
        tuned) tuned $there ;;
        *) study "${name%-seconds}" $there ;;
    esac
done
exit "$failed"
