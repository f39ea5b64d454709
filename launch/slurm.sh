# The script after the #SBATCH lines of a job; launch/slurm.py sets the variables before it.
set -uo pipefail
cd -- "$folder" || exit 2
export PYTHONPATH=$tree${PYTHONPATH:+:$PYTHONPATH} notes=$folder/.lmtrain-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
mkdir -p "$notes" || exit 4

# The coordinator listens on the first node, at the address that SLURM uses or that of --interface.
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if [[ $interface ]]; then
  address=$(ip -4 -o address show dev "$interface" | awk '{ sub("/.*", "", $4); print $4; exit }')
else
  address=$(scontrol show node "$host" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
  address=$(getent ahostsv4 "$address" | awk '{ print $1; exit }')
  # On Debian a node resolves itself to 127.0.1.1, which other nodes cannot reach.
  if [[ $address == 127.* ]] && ((${SLURM_JOB_NUM_NODES:-1} > 1)); then
    other=$(hostname -I | awk '{ print $1 }')
    address=${other:-$address}
  fi
fi
if [[ ! $address ]]; then
  echo "lmtrain slurm: no address of $host${interface:+ on $interface}; name an interface of it (ip address): --interface=NAME" >&2
  exit 2
fi
# Above the ephemeral ports; a different port after each restart.
export coordinator=$address:$((61440 + (SLURM_JOB_ID * 8 + ${SLURM_RESTART_COUNT:-0}) % 4096))
echo "lmtrain slurm: job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), coordinator $coordinator on $host, $SLURM_NTASKS processes"

srun --export=ALL --kill-on-bad-exit=1 --label bash -c '
  trap : TERM INT  # the signal is for the process below, whose exit code is needed
  : >"$notes/started-$SLURM_PROCID"
  "$@" --coordinator="$coordinator" --num_processes="$SLURM_NTASKS" --process_id="$SLURM_PROCID"
  code=$?
  if ((code)); then echo "$code $SLURM_PROCID $SLURMD_NODENAME" >"$notes/code-$SLURM_PROCID"; fi
  exit $((code == 42 ? 0 : code))  # on a nonzero code srun would kill the others, which still save
' lmtrain "${train[@]}"
code=$?
# srun returns the largest code, that of killed peers. Report the first process that failed; those that only lost a peer
# (74, or 134 if JAX aborts them) come last.
while read -r file; do
  read -r found process node <"$file"
  [[ ${who:-} ]] && [[ $code != 74 && $code != 134 || $found == 74 || $found == 134 ]] && continue
  code=$found who="process $process on $node"
done < <(ls -rt -- "$notes"/code-* 2>/dev/null)
[[ ! ${who:-} ]] || echo "lmtrain slurm: $who ended first, with exit code $code" >&2
for ((i = 0; code && i < SLURM_NTASKS; i++)); do
  [[ -e $notes/started-$i ]] || echo "lmtrain slurm: process $i never started" >&2
done
rm -r -- "$notes"
if ((code == 42 || code == 75)) && ((${SLURM_RESTART_COUNT:-0} < retries)); then
  echo "lmtrain slurm: back into the queue, $((${SLURM_RESTART_COUNT:-0} + 1)) of $retries" >&2
  scontrol requeue "$SLURM_JOB_ID" && sleep 600  # it ends this script
fi
exit "$code"
