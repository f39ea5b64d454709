# Sourced by run.sh and test.sh: creates a virtual environment once; later calls only check it, at no cost.
# $PYTHON selects the interpreter, $VENV the folder.

root=$(cd -- "${BASH_SOURCE[0]%/*}/.." && pwd)
VENV=${VENV:-$root/.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV

say() { printf '%s\n' "$*" >&2; }

# Interpreters by name on PATH, then pyenv's, which its shims hide unless one is selected.
pythons() {
  local name pyenv=${PYENV_ROOT:-}
  for name in python3 python3.{14,13,12,11}; do
    type -P "$name" || true  # under errexit a name that is missing would end the search
  done
  [[ $pyenv ]] || pyenv=$(pyenv root 2>/dev/null) || pyenv=$HOME/.pyenv
  for name in "$pyenv"/versions/3.*/bin/python3; do
    if [[ -x $name ]]; then printf '%s\n' "$name"; fi
  done
}

# is_python INTERPRETER CONDITION: it runs, and CONDITION (a Python expression of the tuple v) is true.
is_python() { "$1" -c "import sys; v = sys.version_info[:2]; sys.exit(not ($2))" </dev/null >/dev/null 2>&1; }

find_python() {
  local python
  if [[ ${PYTHON:-} ]]; then
    is_python "$PYTHON" 'v >= (3, 11)' && { printf '%s\n' "$PYTHON"; return; }
    say "lmtrain needs Python 3.11 or newer, and PYTHON=$PYTHON is not: $("$PYTHON" --version 2>&1 | head -n 1)"
    return 1
  fi
  while read -r python; do
    is_python "$python" 'v >= (3, 11)' && { printf '%s\n' "$python"; return; }
  done < <(pythons)
  say "lmtrain needs Python 3.11 or newer and found none: $(python3 --version 2>&1 | head -n 1)"
  say "Install one (https://www.python.org/downloads, or \`apt install python3.12 python3.12-venv\`, \`brew install python@3.12\`),"
  say "or name it: PYTHON=/path/to/python3 bash $0"
  return 1
}

# The extra of jax for this machine: cuda, cuda12, tpu or nothing (CPU).
accelerator() {
  local card driver capability
  # CUDA 13 needs driver 580 and compute capability 7.5; CUDA 12 supports older ones (JAX's installation page).
  if card=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null | head -n 1) && [[ $card ]]; then
    driver=${card%%.*} capability=${card##*, }
    if ((driver >= 580)) && [[ $capability == [0-9][0-9].* || $capability == [89].* || $capability == 7.[5-9] ]]; then
      echo cuda
    else
      echo cuda12
    fi
  elif has_tpu; then
    echo tpu
  fi
}

# A TPU is a PCI device of Google's, with one of these ids (jax/_src/hardware_utils.py; a network card of Google's has another).
has_tpu() {
  local device vendor model
  for device in /sys/bus/pci/devices/*; do
    { read -r vendor <"$device/vendor" && read -r model <"$device/device"; } 2>/dev/null || continue
    [[ $vendor == 0x1ae0 && $model =~ ^0x00(27|56|5e|62|63|6f|76)$ ]] && return
  done
  return 1
}

# Path and interpreter of the virtual environment. If they change, it is created anew.
owner() { printf '%s\n%s\n' "$root" "${PYTHON:-any python}"; }

# The same and the devices. If only these change, as between the nodes of a cluster that share a folder, the machine's jax
# is installed beside what is there: a run may be using it.
maker() {
  local device
  owner
  for device in /dev/nvidiactl /dev/dxg /dev/accel0 /dev/vfio/0; do
    if [[ -e $device ]]; then printf '%s\n' "$device"; fi
  done
}

# install EXTRAS: installs lmtrain with these extras (comma-separated, may be empty) and the machine's jax in $VENV.
# The stamp is written last, so an interrupted installation is repeated. Does nothing if the stamp is current.
install() {
  local extras=$1 made=$VENV/.made stamp=$VENV/.installed${1:+-$1} want made_by python started=$SECONDS found log
  want=$(<"$root/setup.py") made_by=$(maker)
  [[ -x $VENV/bin/lmtrain && -f $made && -f $stamp && $(<"$made") == "$made_by" && $(<"$stamp") == "$want" ]] && return

  # The lock is made before the environment: a folder without one belongs to somebody else and must not be emptied.
  if [[ ! -e $VENV.lock && ! -e $made ]] && compgen -G "$VENV/*" >/dev/null; then
    say "$VENV exists and was not made by lmtrain: remove it, or name another folder: VENV=/path/to/folder bash $0"
    return 1
  fi
  mkdir -p "${VENV%/*}" || return
  exec 9>"$VENV.lock"
  if type -P flock >/dev/null; then
    flock -n 9 || { say "lmtrain: waiting for another installation in $VENV ..."; flock 9; }
    [[ -f $made && -f $stamp && $(<"$made") == "$made_by" && $(<"$stamp") == "$want" ]] && { exec 9>&-; return; }
  fi

  if [[ ! -x $VENV/bin/python || ! -f $made || $(<"$made")$'\n' != "$(owner)"$'\n'* ]]; then
    python=$(find_python) || return
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
      say "$python cannot make virtual environments: its venv module is missing."
      say "On Debian and Ubuntu: sudo apt install $(basename "$(readlink -f "$(type -P "$python")")")-venv"
      return 1
    fi
    "$python" -m venv --clear "$VENV" || return
  fi
  rm -f "$made" "$stamp"
  found=$(accelerator)
  say "lmtrain: installing in ${VENV/#$PWD\//} for ${found:-cpu}, once; this takes a minute or two ..."
  log=$VENV/install.log
  extras=$extras${found:+${extras:+,}$found}
  if ! "$VENV/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --retries 10 --timeout 60 \
    --editable "$root${extras:+[$extras]}" </dev/null >"$log" 2>&1; then
    cat "$log" >&2
    say "lmtrain: the installation failed; the lines above are pip's (also in $log). Run this again to retry."
    return 1
  fi
  printf '%s' "$want" >"$stamp"
  printf '%s' "$made_by" >"$made"
  exec 9>&-
  say "lmtrain: installed in $((SECONDS - started)) s"
}
