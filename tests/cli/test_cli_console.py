"""What reaches the terminal: text, and Rich's own commands, but none that a file or its name holds."""

import io
import logging

import pytest
from rich.table import Table

from linseed.scripts.cli import command
from linseed.scripts.cli.console import Console, printable

# Clears the screen, sets the title, a C1 command, turns the writing direction round, undecodable bytes of a file name.
HOSTILE = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\u202e", "\udcff", "\r", "\x00"]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("terminal", [True, False])
def test_no_text_commands_the_terminal(text, terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, color_system=None, width=200)
    console.print(f"a{text}b\nc", markup=False, highlight=False)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(table)
    console.print_json(data={text: text})
    shown = file.getvalue()
    assert "b\nc" in shown and all(letter.isprintable() or letter == "\n" for letter in shown)


def test_richs_own_commands_still_reach_a_terminal():
    file = io.StringIO()
    Console(file=file, force_terminal=True).print("[bold]text[/bold]")
    assert "\x1b[1m" in file.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_warnings_errors_and_messages_are_printable_lines(text, capsys):
    record = logging.LogRecord("linseed", logging.WARNING, "", 0, "%s is damaged\n%s", (text, text), None)
    assert command._OneLine().format(record).isprintable()
    with pytest.raises(SystemExit):
        command._fail(f"{text} holds\n no run")
    command.tell(f"{text} stops")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.isprintable() for line in lines)


def test_letters_of_all_languages_stay():
    assert printable("Größe 猫 ━ é\n") == "Größe 猫 ━ é\n"
