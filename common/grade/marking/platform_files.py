"""The files that Gradescope and GitHub Classroom ask for. {...} is filled in by handing_out.py."""

SETUP = """#!/usr/bin/env bash
# Gradescope runs this once, when the autograder's container is built.
set -e
AUTOGRADER=${AUTOGRADER:-/autograder}
apt-get update
apt-get install -y python3 python3-venv util-linux
python=python3
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then  # Ubuntu 22.04 has 3.10
  apt-get install -y python3.11 python3.11-venv
  python=python3.11
fi
"$python" -m venv "$AUTOGRADER/venv"
cd "$AUTOGRADER/source/course"
"$AUTOGRADER/venv/bin/pip" install -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu \\
  torch torchvision numpy scipy matplotlib pillow tqdm tyro nbformat pytest
chmod -R go-rwx "$AUTOGRADER/source"  # where hand-ins run as another user, they cannot read the checks
"""
RUN = """#!/usr/bin/env bash
# Gradescope runs this for each submission. Whatever happens, results.json is written.
AUTOGRADER=${AUTOGRADER:-/autograder}
PYTHON=${PYTHON:-$AUTOGRADER/venv/bin/python}
mkdir -p "$AUTOGRADER/results"
echo '{"score": 0, "output": "The autograder ended without a result. Your teacher has to run it again."}' \\
  > "$AUTOGRADER/results/results.json"
cd "$AUTOGRADER/source/course" || exit 0
PYTHONPATH=. "$PYTHON" -m common.teach.gradescope --folder "$AUTOGRADER" || true
"""
CLASSROOM = """# GitHub Classroom: one test for each exercise, with the public tests.
name: Autograding Tests
on: [push, workflow_dispatch]
permissions:
  checks: write
  actions: read
  contents: read
jobs:
  run-autograding-tests:
    runs-on: ubuntu-latest
    if: github.actor != 'github-classroom[bot]'
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      - run: pip install --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt
{steps}      - uses: classroom-resources/autograding-grading-reporter@v1
        env:
{results}        with:
          runners: {runners}
"""
STEP = """      - id: {id}
        uses: classroom-resources/autograding-command-grader@v1
        with:
          test-name: "{name}"
          command: python -m common.grade {chapter} --only {number} --fail-under {points}
          timeout: 5
          max-score: {points}
"""
