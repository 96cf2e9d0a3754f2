"""Commands and option types that answer a wrong word with a suggestion."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import click

MINUS = "\u2212"


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that begins with the word, else the one most like it, if any is.

    closest("inspect", ["info", "inspect-attention"]) is "inspect-attention".
    """
    known = list(names)
    longer = [name for name in known if word and name.startswith(word)]
    near = longer or difflib.get_close_matches(word, known, n=1)
    return near[0] if near else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message, worded as click's own for options; empty without a suggestion."""
    near = closest(word, names)
    return "" if near is None else f" (Did you mean {near!r}?)"


class SuggestingGroup(click.Group):
    """A group that suggests a command for an unknown name, and imports only what is called.

    `modules` names for each command the module that holds it, under the same name or one with _.
    """

    def __init__(self, *args: Any, modules: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._modules = modules

    def list_commands(self, _: click.Context) -> list[str]:
        """Their names."""
        return sorted(self._modules)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in self._modules:
            return None
        module = import_module(self._modules[cmd_name])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of that name; `kvgen help` gets --help as suggestion."""
        name = args[0]
        if self.get_command(ctx, name) is None and name[:1] != "-" and not ctx.resilient_parsing:
            options = [each for param in self.get_params(ctx) for each in param.opts]
            near = did_you_mean(name, [*self._modules, *options])
            ctx.fail(f"No such command {name!r}.{near}")
        return super().resolve_command(ctx, args)


class PromptCommand(click.Command):
    """A command whose argument is a prompt: words beyond the first are a prompt without quotes."""

    allow_extra_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse a second word, and show the prompt in quotes."""
        rest = super().parse_args(ctx, self._with_minus_signs(args))
        if ctx.args and not ctx.resilient_parsing:
            words = [str(ctx.params.get("prompt") or ""), *ctx.args]
            ctx.fail(
                f"{len(words)} words where one argument is expected: put the prompt in quotes, "
                f'"{" ".join(words)}"'
            )
        return rest

    def _with_minus_signs(self, args: list[str]) -> list[str]:
        """The arguments, where `--explain -2` has a true minus sign in its number.

        Behind an option that may stand without a value, click takes -2 for another option.
        """
        optional = {
            name
            for parameter in self.params
            if isinstance(parameter, click.Option) and parameter._flag_needs_value
            for name in parameter.opts
        }
        changed = []
        for before, arg in zip(["", *args], args, strict=False):
            name, _, value = arg.partition("=")
            if before in optional and re.fullmatch("-[0-9]+", arg):
                arg = MINUS + arg[1:]
            elif name in optional and re.fullmatch("-[0-9]+", value):
                arg = f"{name}={MINUS}{value[1:]}"
            changed.append(arg)
        return changed


class OneOf(click.Choice[str]):
    """One of several names; a wrong one is answered with the most similar."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Anything else is a usage error."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(error.message + did_you_mean(str(value), self.choices), param, ctx)


class Count(click.IntRange):
    """A whole number; a text gets a hint, because the option takes a text in other commands."""

    def __init__(self, *, min: int, hint: str) -> None:
        super().__init__(min=min)
        self._hint = hint

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Anything else is a usage error."""
        try:
            int(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a valid integer: {self._hint}", param, ctx)
        return super().convert(value, param, ctx)
