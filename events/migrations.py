"""A database is brought up to date when it is opened; one that is up to date must not pay for importing Alembic."""

from pathlib import Path
from typing import TYPE_CHECKING

from events.store import StoreUnavailable

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: Where the migrations are, seen from the directory that holds this package: in an installed wheel, in a checkout.
#: The wheel's place is asked first: beside an installed package, `alembic` is the library itself.
_PLACES = ("herd/_alembic", "alembic")


def scripts_home(beside: Path | None = None) -> Path:
    """Return the directory of the migrations. `beside` is the directory that holds the packages, default: this one's.

    Raises `StoreUnavailable` when the installation lacks them.
    """
    beside = beside or Path(__file__).resolve().parent.parent
    for place in _PLACES:
        if (beside / place / "env.py").is_file() and (beside / place / "versions").is_dir():
            return beside / place
    raise StoreUnavailable(f"the database migrations are missing beside {beside}: install Herd again")


def revisions(scripts: Path) -> list[str]:
    """Return all revisions, oldest first: the numbers that the files of `versions/` begin with."""
    return sorted(path.name.partition("_")[0] for path in (scripts / "versions").glob("[0-9]*_*.py"))


def upgrade(connection: "Connection", scripts: Path) -> None:
    """Apply what is missing, in the connection's transaction."""
    # Half of a fast start would go into importing these, and most starts have nothing to migrate.
    from alembic.config import Config  # noqa: PLC0415

    from alembic import command  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
