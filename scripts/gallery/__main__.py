"""Draws what optimisers, schedules, activations and augmentations do, as pictures and on one page.

linseed gallery --out=runs/gallery
"""

from pathlib import Path

from linseed.scripts.cli import command

OUT = command.define_path("out", None, "Folder for the pictures and index.html.")


def main(console):
    from linseed.models.layers import ACTIVATIONS
    from linseed.scripts.gallery import page

    console.print(f"gallery: {page.write(Path(OUT.value), ACTIVATIONS)}", soft_wrap=True)


def run():
    command.run(main, needs=("out",))


if __name__ == "__main__":
    run()
