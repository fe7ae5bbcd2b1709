"""What there is and what is wrong: list, show, check, plugins, doctor, new."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdlm.cli.common import (
    RecipeFile,
    Sets,
    app,
)
from cdlm.errors import CdlmError

if TYPE_CHECKING:
    pass


@app.command("list")
def list_(kind: Annotated[str, typer.Argument(metavar="KIND")] = "") -> None:
    """List the components of a kind, or of all kinds."""
    from cdlm import describe

    print(describe.components(kind))


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="RECIPE|KIND")],
    name: Annotated[str, typer.Argument(metavar="NAME")] = "",
    set_: Sets = None,
) -> None:
    """Show a recipe with every value and its origin, or a component.

    Like: cdlm show recipes/extra_token.toml, or cdlm show schedule cosine.
    """
    from cdlm import describe

    print(describe.shown(what, name, set_ or []))


@app.command()
def check(recipe: RecipeFile, set_: Sets = None) -> None:
    """Check a recipe, and report all its mistakes at once."""
    from cdlm import recipe as recipes

    resolved = recipes.load(recipe, set_ or [])
    print(f"{recipe}: no mistakes (hash {resolved.hash[:8]})")


@app.command("plugins")
def plugins_(
    verbose: Annotated[bool, typer.Option("--verbose", help="Print tracebacks.")] = False,
) -> None:
    """List the plugins, what they bring, and which failed."""
    from cdlm import describe

    print(describe.plugins_installed(verbose))


@app.command()
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="Examine its features instead.")
    ] = None,
    set_: Sets = None,
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A split to examine; may be repeated."),
    ] = None,
) -> None:
    """Examine this machine, or a recipe's features.

    Without a recipe: versions, devices, Java, disk. With one: whether the features of its images,
    and of its captions where the encoder has them, are finite, normalised, in the order of their
    names, and not swapped; in training and in the split of [evaluate], unless --split names
    others. For a file of ready features:
    cdlm doctor RECIPE --set 'encoder={use="features", path="FILE"}'. Exit code 1: something is bad.
    """
    from cdlm import describe

    if recipe is None:
        if set_ or split:
            option = "--set" if set_ else "--split"
            raise CdlmError(f"{option} is for a recipe, and has no effect without one")
        healthy, text = describe.health()
    else:
        from cdlm import recipe as recipes

        resolved = recipes.load(recipe, set_ or [])
        from cdlm import checkup, progress

        with progress.bars() as tell:
            found = checkup.examine(resolved, split or (), tell)
        healthy, text = describe.findings(found)
    print(text)
    raise typer.Exit(0 if healthy else 1)


new = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Begin something of your own.")
app.add_typer(new, name="new")


@new.callback()
def _new() -> None:
    """Begin something of your own."""


@new.command()
def plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the package, like cdlm-film.")],
    kind: Annotated[str, typer.Option(metavar="KIND", help="Of its component; see cdlm list.")],
    into: Annotated[Path, typer.Option(metavar="DIR", help="Where its folder goes.")] = Path(),
) -> None:
    """Write a plugin package with one component that works.

    Like: cdlm new plugin cdlm-film --kind conditioning. It can be installed at once, and its tests
    pass; change what its component does, and they tell whether it still keeps the laws of its kind.
    """
    from cdlm import scaffold

    place = scaffold.plugin(name, kind, into)
    print(f"plugin: {place}\n    pip install -e {place} && pytest {place}")
