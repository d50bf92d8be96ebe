"""`inturn completion`: the script by which a shell completes commands, topics and keys."""

from __future__ import annotations

import os
import re

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from inturn.cli.terminal.key_text import quoted
from inturn.cli.terminal.output import Ours, echo

_VARIABLE = "_INTURN_COMPLETE"
_LONG = re.compile("--[a-z-]+=")
_QUOTED = re.compile(r"""(?:^|\s)['"][^\s]*$""")


@add_completion_class
class _Bash(BashComplete):
    """Click's, for keys: bash puts texts in as they are, and breaks words at : and = too."""

    # Without -r it takes the backslashes out of them.
    source_template = BashComplete.source_template.replace("read type", "read -r type").replace(
        "env COMP_WORDS", 'env COMP_LINE="$COMP_LINE" COMP_POINT=$COMP_POINT COMP_WORDS'
    )
    #: What of the word stands on the line already, for bash.
    done = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE")
        if not line:
            return super().get_completion_args()
        before = os.fsencode(line)[: int(os.environ["COMP_POINT"])].decode(errors="ignore")
        # With one character more there is always a last word, whatever quote is open.
        _, *args, word = split_arg_string(before + "x")
        incomplete = word[:-1]
        if not _QUOTED.search(before):
            typed = incomplete.partition("=")[2] if _LONG.match(incomplete) else incomplete
            self.done = typed[: max(typed.rfind(":"), typed.rfind("=")) + 1]
        return args, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{quoted((item.value or '').removeprefix(self.done))}"


@click.command(
    epilog="""\b
Example:
  eval "$(inturn completion bash)"                    # in ~/.bashrc
  eval "$(inturn completion zsh)"                     # in ~/.zshrc
  inturn completion fish > ~/.config/fish/completions/inturn.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete commands, topics and keys.

    Topics and keys come from the database that the line typed so far or the
    environment names; if it does not answer within two seconds, they are left out.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click knows the three
    root = ctx.find_root()
    echo(Ours(kind(root.command, {}, root.info_name or "inturn", _VARIABLE).source()))
