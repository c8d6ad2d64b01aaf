#!/usr/bin/env bash
# Every row and seed as tasks of Slurm arrays, all on one store, and then a job that checks
# and reports. In the repository, after `make build`:
#
#     SCALE=paper DEVICE=cuda:0 SEEDS=0,1,2 STORE=/shared/store THROTTLE=8 \
#         bash paper/cluster/slurm.sh --partition=gpu --gres=gpu:1 --time=04:00:00
#
# What is given is handed to sbatch, after these defaults: 8 CPUs, 32 GB, logs/. Also read:
# CELLS="dijs init-50" (some rows only), THROTTLE (at most so many tasks of an array at a
# time), REPLICATE (another program), FETCH (a CPU build to download with), OUTPUT, DATA,
# PRELUDE='module load cuda/12.6' (run first in every job) and CONTAINER, with
# REPLICATE=replicate: either the options of srun (CONTAINER='--container-image=replicate.sqsh
# --container-mounts=/shared') or a command that starts the program (CONTAINER='apptainer exec
# --nv replicate.sif').
# The same command again makes what is missing and no more.
#
# First come the pre-trainings, one task each; the rows that start from one wait for it in
# the queue and not on a GPU. Before a job's time limit Slurm signals the program, which
# writes a checkpoint, and the task queues itself again. On preemption Slurm signals early
# only where the site has set preempt_send_user_signal; without it a task goes on from its
# last periodic checkpoint. The store must lie where flock(2) holds between nodes: NFS, GPFS,
# or Lustre mounted with -o flock, not with localflock.
#
# Nothing of a CUDA program is run where this is submitted, which often has no driver.
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -euo pipefail

export SCALE=${SCALE:-mini} DEVICE=${DEVICE:-cpu} SEEDS=${SEEDS:-${SEED:-0}}
export STORE=${STORE:-store} DATA=${DATA:-} OUTPUT=${OUTPUT:-report}
export PRELUDE=${PRELUDE:-} CONTAINER=${CONTAINER:-}
export REPLICATE=${REPLICATE:-target/release/replicate}
# The rows that are run, by the paper's tables; the full initialisation is DiJS there.
export CELLS=${CELLS-$(awk -F, 'FNR > 1 {print FILENAME ~ /table2/ ? $NF : $1}' \
    paper/table1.csv paper/table2.csv | awk '!seen[$0]++' | tr '\n' ' ')}
read -r -a cells <<< "$CELLS"
IFS=, read -r -a seeds <<< "$SEEDS"
if [ "${#cells[@]}" = 0 ] || [ "${#seeds[@]}" = 0 ]; then
    echo "nothing to submit: CELLS or SEEDS is empty" >&2
    exit 2
fi
place=(--scale "$SCALE" --device "$DEVICE" --store "$STORE" ${DATA:+--data "$DATA"})

# Runs the program in this job. Before the time limit Slurm signals the program, because srun
# starts it, and not this shell: it writes a checkpoint and leaves with 75, and the job goes
# back into the queue. What is cancelled ends with this shell, and is not.
step() {
    local code=0 options=() prefix=()
    case $CONTAINER in
        --*) read -r -a options <<< "$CONTAINER" ;;
        *) read -r -a prefix <<< "$CONTAINER" ;;
    esac
    srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" "${options[@]}" \
        "${prefix[@]}" "$REPLICATE" "$@" || code=$?
    if [ "$code" = 75 ]; then
        # Not the plain job id, which for one task of an array names them all.
        scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
        exit 75
    fi
    return "$code"
}

# What several rows share, as the row that stands for all of them: the network that a row of
# Table 2 alone starts from, or the teacher.
start_of() {
    case $1 in
        init-single | init-[0-9]*) echo "$1" ;;
        *) echo edm ;;
    esac
}

fetched() {
    "$@" fetch paper --store "$STORE"
    # It confirms the statistics of the real images, and is not required.
    "$@" fetch fid-reference --store "$STORE" || true
}

job=${1:-}
case $job in
    fetch | pretrain | task | report)
        shift
        # What sites and conda load reads unset variables.
        set +u
        eval "$PRELUDE"
        set -u
        ;;
esac
case $job in
    fetch)
        fetched step
        ;;
    pretrain)
        starts=("$@")
        step run "${starts[SLURM_ARRAY_TASK_ID]}" --pretrain "${place[@]}" --watch lines
        ;;
    task)
        # Rows of the first seed come first.
        rows=("$@")
        step run "${rows[SLURM_ARRAY_TASK_ID % ${#rows[@]}]}" \
            --seed "${seeds[SLURM_ARRAY_TASK_ID / ${#rows[@]}]}" "${place[@]}" --watch lines --output "$OUTPUT"
        ;;
    report)
        # Trains nothing: a row whose task failed is named, and the exit code is 5.
        code=0
        step run "${cells[@]}" --seed "$SEEDS" --stored "${place[@]}" --output "$OUTPUT" || code=$?
        step check "${cells[@]}" "${place[@]}" --against claims || true
        step report "${place[@]}" --output "$OUTPUT" || true
        step check "${cells[@]}" "${place[@]}" --against golden || code=$((code ? code : $?))
        exit "$code"
        ;;
    *)
        for option in "$@"; do
            case $option in
                --array* | -a*)
                    echo "$option: the arrays are this script's; THROTTLE=4 runs at most four tasks of each" >&2
                    exit 2
                    ;;
            esac
        done
        [ -n "$CONTAINER" ] || command -v "$REPLICATE" > /dev/null || {
            echo "$REPLICATE is missing: build it here with 'make build' (FEATURES=cudnn for a GPU)" >&2
            exit 3
        }
        mkdir -p logs
        # submit NAME LOG SBATCH_OPTIONS... -- JOB...
        submit() {
            local name=$1 log=$2 options=() id
            shift 2
            while [ "$1" != -- ]; do
                options+=("$1")
                shift
            done
            shift
            id=$(sbatch --parsable --export=ALL --job-name="$name" --output="logs/%x-$log.log" \
                "${given[@]}" "${options[@]}" "${BASH_SOURCE[0]}" "$@")
            echo "${id%%;*}"
        }
        given=("$@")
        throttle=${THROTTLE:+%$THROTTLE}
        after=() jobs=()
        case $SCALE in
            small | paper)
                # Once and here: compute nodes often have no way out.
                if "${FETCH:=$REPLICATE}" --version > /dev/null 2>&1; then
                    fetched "$FETCH"
                else
                    echo "$FETCH does not start here: a job fetches; FETCH=PROGRAM names a CPU build that does it now" >&2
                    fetch=$(submit replicate-fetch %j -- fetch)
                    after=(--dependency="afterok:$fetch" --kill-on-invalid-dep=yes)
                fi
                ;;
        esac
        starts=()
        for cell in "${cells[@]}"; do
            start=$(start_of "$cell")
            case " ${starts[*]-} " in *" $start "*) ;; *) starts+=("$start") ;; esac
        done
        first=$(submit replicate-start %A_%a --array="0-$((${#starts[@]} - 1))$throttle" "${after[@]}" \
            -- pretrain "${starts[@]}")
        echo "array $first: ${#starts[@]} tasks make what the rows start from"
        # rows DEPENDENCY ROW...: every seed of these rows as an array.
        rows() {
            local dependency=$1 last
            shift
            [ $# != 0 ] || return 0
            last=$(($# * ${#seeds[@]} - 1))
            jobs+=("$(submit replicate %A_%a --array="0-$last$throttle" --dependency="$dependency" \
                --kill-on-invalid-dep=yes -- task "$@")")
            echo "array ${jobs[-1]}: $((last + 1)) tasks, $*, seeds $SEEDS"
        }
        for i in "${!starts[@]}"; do
            now=() later=()
            for cell in "${cells[@]}"; do
                [ "$(start_of "$cell")" = "${starts[i]}" ] || continue
                # Its generator starts where SiD's ended; at the paper scale that one is published.
                case $SCALE-$cell in
                    paper-sid2a) now+=("$cell") ;;
                    *-sid2a) later+=("$cell") ;;
                    *) now+=("$cell") ;;
                esac
            done
            rows "afterok:${first}_$i" "${now[@]}"
            rows "afterok:${first}_$i${now:+,afterany:${jobs[-1]-}}" "${later[@]}"
        done
        report=$(submit replicate-report %j --dependency="afterany:$(IFS=:; echo "${jobs[*]}")" -- report)
        echo "job $report reports to $OUTPUT"
        ;;
esac
