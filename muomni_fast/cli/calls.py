"""How commands are called: what `--help` shows, and what is said of a call that is wrong."""

from typing import Any

import typer
from typer.core import TyperGroup

from .options import print_error

# The class is click's own, or typer's copy of it, by typer's version.
WRONG_CALL: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


class Commands(TyperGroup):
    """The commands; `obj` of the context is the list of words that they are called with."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command: Any = super().get_command(ctx, cmd_name)
        for param in command.params if command else ():
            if param.param_type_name == "argument":  # newer typers put `<list[str]>` beside them
                param.display_type_rich = lambda ctx: None
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except WRONG_CALL as error:
            if "--json" in ctx.obj:
                print_error(error.format_message())
            raise
