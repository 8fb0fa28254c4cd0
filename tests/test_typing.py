"""What a type checker sees."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

SNIPPET = """\
import jax
import jnn as nn
from jnn import layers as L

m = nn.Linear(3, 4, bias=False)
reveal_type(nn.Linear.__init__)
reveal_type(m.in_features)
reveal_type(nn.Sequential(m)[0:1])
reveal_type(L.Linear(3, 4).init(jax.random.key(0)))
nn.Linear("3", 4)
nn.Linear("3")
nn.Linear(3, 4, biased=True)
nn.BatchNorm2d(3, momentum="high")
m.in_features = 5
"""


def test_constructors_have_exact_signatures(tmp_path):
    path = tmp_path / "snippet.py"
    path.write_text(SNIPPET)
    checker = pathlib.Path(sys.executable).with_name("basedpyright")
    run = subprocess.run(
        [checker, "--outputjson", "--pythonpath", sys.executable, path],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
        check=False,
    )
    found = json.loads(run.stdout)["generalDiagnostics"]
    lines = SNIPPET.splitlines()
    shown = {lines[d["range"]["start"]["line"]]: d["message"] for d in found if d["severity"] == "information"}
    wrong = {lines[d["range"]["start"]["line"]] for d in found if d["severity"] == "error"}
    signature = shown["reveal_type(nn.Linear.__init__)"]
    assert "in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None" in signature
    assert '"int"' in shown["reveal_type(m.in_features)"]
    assert "tuple" in shown["reveal_type(L.Linear(3, 4).init(jax.random.key(0)))"]
    assert wrong == set(lines[9:13])
