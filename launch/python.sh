# Sets `python`, the command that runs Python as an array of words, and `python_from`, where it was found. Sourced by
# train.sbatch and debug.sh. Conda's base environment does not count as activated: login shells activate it by default.
# shellcheck shell=bash disable=SC2034
if [[ -n ${PYTHON:-} ]]; then
    python_from=PYTHON
    if type -P "$PYTHON" >/dev/null; then python=("$PYTHON"); else read -ra python <<<"$PYTHON"; fi # path with spaces
elif [[ -n ${VIRTUAL_ENV:-} && -x $VIRTUAL_ENV/bin/python ]]; then
    python=("$VIRTUAL_ENV/bin/python") python_from=VIRTUAL_ENV
elif [[ -n ${CONDA_PREFIX:-} && -x $CONDA_PREFIX/bin/python && ${CONDA_DEFAULT_ENV:-} != base ]]; then
    python=("$CONDA_PREFIX/bin/python") python_from=CONDA_PREFIX
elif [[ -x .venv/bin/python ]]; then
    python=("$PWD/.venv/bin/python") python_from=.venv
else
    python=(python) python_from=PATH
fi
if [[ ${python[0]} != */* ]]; then python_from+=": $(type -P "${python[0]}" || echo "not found on this machine")"; fi
