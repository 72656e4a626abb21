import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHILD = """
import sys
from pathlib import Path
from linseed.scripts.cli import utf8
utf8.use()
Path(sys.argv[1], "f\\u00fcnf").write_text("\\u732b")
print(sys.argv[2], sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


@pytest.mark.parametrize("mode", ["0", None])
def test_names_files_and_output_are_utf8_where_the_locale_says_ascii(tmp_path, mode):
    (tmp_path / "café").touch()
    ours = {key: value for key, value in os.environ.items() if key not in ("PYTHONUTF8", "LANG", "LC_CTYPE")}
    environment = ours | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"} | ({"PYTHONUTF8": mode} if mode else {})
    command = [sys.executable, "-c", CHILD, str(tmp_path), "Ä b,c"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True)
    assert done.stdout.decode() == "Ä b,c ['café', 'fünf']\n", done.stderr
    assert (tmp_path / "fünf").read_bytes().decode() == "猫"
