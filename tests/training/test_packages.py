"""What training needs is looked for before it begins, and `--help` needs none of it."""

import re
import subprocess
import sys
import tomllib

import pytest
from support.environment import ROOT

from muomni_fast.reference import evaluate, packages, train
from muomni_fast.reference.packages import NEEDED

INSTALL = 'pip install -c constraints.txt -e ".[{}]" in the repository'
HELP = """
import sys
for name in {names}:
    sys.modules[name] = None
from muomni_fast.reference import evaluate, train
for main in (train.main, evaluate.main):
    try:
        main(["--help"])
    except SystemExit as end:
        assert end.code == 0
print(train.main(["--out", "run"]), evaluate.main([]))
"""


@pytest.mark.long
def test_help_needs_torch_and_numpy_only(tmp_path):
    code = HELP.format(names=NEEDED["train"])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "--preset" in done.stdout and "--metrics" in done.stdout
    assert done.stdout.endswith("\n2 2\n") and not list(tmp_path.iterdir())
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [
        f"error: {what} needs {', '.join(NEEDED[extra])}: {INSTALL.format(extra)}"
        for what, extra in (("training", "train"), ("evaluation", "evaluate"))
    ]


@pytest.mark.parametrize("name", NEEDED["train"])
def test_each_package_is_looked_for_before_anything_is_made(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    find = packages.importlib.util.find_spec
    monkeypatch.setattr(
        packages.importlib.util, "find_spec", lambda given: None if given == name else find(given)
    )
    assert train.main(["--preset", "smoke"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: training needs {name}: {INSTALL.format('train')}\n"
    assert not list(tmp_path.iterdir())
    if name in NEEDED["evaluate"]:
        assert evaluate.main([]) == 2 and "[evaluate]" in capsys.readouterr().err


def test_the_extras_bring_what_is_looked_for():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    assert sorted(re.match(r"\w+", line)[0] for line in extras["train"]) == [*NEEDED["train"]]
    assert "muomni-fast[train]" in extras["evaluate"]
    assert {*NEEDED["evaluate"]} <= {*NEEDED["train"]}
