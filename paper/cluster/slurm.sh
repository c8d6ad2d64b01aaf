#!/usr/bin/env bash
# Every cell and seed as a task of one Slurm array, all on one store, and then a
# job that checks and reports. In the repository, after `make build`:
#
#     SCALE=paper DEVICE=cuda:0 SEEDS=0,1,2 STORE=/shared/store \
#         bash paper/cluster/slurm.sh --partition=gpu --gres=gpu:1 --time=04:00:00
#
# What is given is handed to sbatch. CELLS="dijs init-50" takes some rows only,
# REPLICATE another program, OUTPUT another place than report/. The same command
# again makes what is missing and no more.
#
# The store must lie where flock(2) holds between nodes: NFS, GPFS, or Lustre
# mounted with -o flock, not with localflock. Two tasks that start from the same
# pre-training make it once; the second waits.
#SBATCH --job-name=replicate
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -euo pipefail

export SCALE=${SCALE:-mini} DEVICE=${DEVICE:-cpu} SEEDS=${SEEDS:-0}
export STORE=${STORE:-store} DATA=${DATA:-} OUTPUT=${OUTPUT:-report}
export REPLICATE=${REPLICATE:-target/release/replicate}
command -v "$REPLICATE" > /dev/null || {
    echo "$REPLICATE is missing: build it here with 'make build' (FEATURES=cudnn for a GPU)" >&2
    exit 3
}
export CELLS=${CELLS:-$("$REPLICATE" list --ids | tr '\n' ' ')}
read -r -a cells <<< "$CELLS"
IFS=, read -r -a seeds <<< "$SEEDS"
place=(--scale "$SCALE" --device "$DEVICE" --store "$STORE" ${DATA:+--data "$DATA"})

# Runs cells. 300 s before the time limit Slurm signals the worker, because srun
# starts it, and not this shell: it writes a checkpoint and leaves with 75, and the
# job goes back into the queue. What is cancelled ends with this shell, and is not.
work() {
    local code=0
    srun --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" \
        "$REPLICATE" run "$@" "${place[@]}" --watch lines --output "$OUTPUT" || code=$?
    if [ "$code" = 75 ]; then
        # Not the plain job id, which for one task of an array names them all.
        scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
    fi
    return "$code"
}

case ${1:-} in
    task)
        # All cells of the first seed come first: other pre-trainings, so less waiting.
        work "${cells[SLURM_ARRAY_TASK_ID % ${#cells[@]}]}" \
            --seed "${seeds[SLURM_ARRAY_TASK_ID / ${#cells[@]}]}"
        ;;
    report)
        # What is there is not made again; what compares two cells is measured now.
        code=0
        work "${cells[@]}" --seed "$SEEDS" || code=$?
        [ "$code" != 75 ] || exit 75
        "$REPLICATE" check "${cells[@]}" "${place[@]}" --against claims || true
        "$REPLICATE" report "${place[@]}" --output "$OUTPUT"
        "$REPLICATE" check "${cells[@]}" "${place[@]}" --against golden
        ;;
    *)
        # Once and here: compute nodes often have no way out.
        case $SCALE in
            small | paper)
                "$REPLICATE" fetch paper --store "$STORE"
                # It confirms the statistics of the real images, and is not required.
                "$REPLICATE" fetch fid-reference --store "$STORE" || true
                ;;
        esac
        submit=(sbatch --parsable --export=ALL "$@")
        last=$((${#cells[@]} * ${#seeds[@]} - 1))
        array=$("${submit[@]}" --array="0-$last" "${BASH_SOURCE[0]}" task)
        array=${array%%;*}
        report=$("${submit[@]}" --dependency="afterany:$array" "${BASH_SOURCE[0]}" report)
        echo "array $array: $((last + 1)) tasks, $CELLS, seeds $SEEDS; then job ${report%%;*} reports to $OUTPUT"
        ;;
esac
