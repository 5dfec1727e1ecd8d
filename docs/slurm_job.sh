#!/usr/bin/env bash
#SBATCH --job-name=lightsecagg
#SBATCH --ntasks=21              # a server and 20 clients
#SBATCH --cpus-per-task=4
#SBATCH --time=02:00:00
#SBATCH --output=lightsecagg-%j.log
# sbatch docs/slurm_job.sh, from the repository's folder, which all nodes must see.
set -euo pipefail
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK OPENBLAS_NUM_THREADS=$SLURM_CPUS_PER_TASK
export TERM=dumb  # plain lines in the log

# mpirun takes nodes and tasks from SLURM, and lets the others live when a process dies. Without --with-ft, or
# with `srun --mpi=pmix` in its place (drop all words up to `lightsecagg`), one dead process ends the job.
mpirun --with-ft ulfm --map-by "slot:PE=$SLURM_CPUS_PER_TASK" -x OMP_NUM_THREADS -x OPENBLAS_NUM_THREADS -x TERM \
  lightsecagg mpi --cf config/fedml_config.yaml --run_id "job-$SLURM_JOB_ID"
