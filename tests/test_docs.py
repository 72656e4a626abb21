"""What README.md and docs/ name is there: every entry of a table, every flag."""

import re
from pathlib import Path

import pytest

from linseed.models import MODELS
from linseed.trainer.data.sources import SOURCES
from linseed.trainer.optim.chain import OPTIMIZERS
from linseed.trainer.optim.schedules import SCHEDULES
from linseed.trainer.step.losses import LOSSES

ROOT = Path(__file__).parent.parent
README = (ROOT / "docs/config.md").read_text()
PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TABLES = {
    "model": MODELS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
    "data.source": SOURCES,
}
OF_OTHERS = {"xla_force_host_platform_device_count", "xla_gpu_deterministic_ops", "signal"}  # XLA's, Slurm's


def named(section):
    """The names in the row of `section`; `vgg11/13` is `vgg11` and `vgg13`, `a_b/c` `a_b` and `a_c`."""
    (row,) = (line for line in README.splitlines() if line.startswith(f"| `{section}` |"))
    found = set()
    for word in re.findall(r"`([\w/]+)`", row.split(" | ", 1)[1]):
        first, *more = word.split("/")
        stem, family = first.rstrip("0123456789"), first.partition("_")[0]
        found |= {first, *(stem + last if last.isdigit() else f"{family}_{last}" for last in more)}
    return found


@pytest.mark.parametrize("section", TABLES)
def test_the_readme_names_every_entry_of_a_table_and_no_other(section):
    assert named(section) == set(TABLES[section])


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_of_a_page_is_one_of_a_command(page):
    source = "".join(path.read_text() for path in (ROOT / "scripts").rglob("*.py"))
    defined = set(re.findall(r'(?:DEFINE_\w+|define_path)\(\s*"(\w+)"', source))
    assert {"config", "workdir", "which"} <= defined  # defined on one line, and on several
    # Ours have no hyphen.
    assert set(re.findall(r"(?<![\w-])--([a-z]\w*)(?![\w-])", PAGES[page])) - defined - OF_OTHERS == set()
