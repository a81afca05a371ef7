"""The schema comes from the migrations alone, wherever they are installed, and never half."""

import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from events import migrations
from events.clock import ManualClock
from events.sqlite import SQLiteStore, database, driver, open_readonly
from events.store import StoreUnavailable
from tests.events.databases import new_log
from tests.events.test_store_contract import MIXED

ROOT = Path(__file__).parents[2]

WRITE = """
import asyncio, sys
from events import migrations
from events.clock import SystemClock
from events.sqlite import SQLiteStore
from events.types import RouterStarted
async def main():
    store = SQLiteStore.open(sys.argv[1], clock=SystemClock(), writer="w")
    await store.flushed(store.append(RouterStarted(version="1")).seq)
    await store.close()
asyncio.run(main())
print(migrations.scripts_home())
"""


def schema(path: Path) -> list[tuple[str, str]]:
    with closing(database.connect_reader(path)) as connection:
        return connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()


def installed(packages: Path) -> Path:
    """Lay the packages out as the wheel does."""
    shutil.copytree(ROOT / "events", packages / "events", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "alembic", packages / "herd" / "_alembic", ignore=shutil.ignore_patterns("__pycache__"))
    (packages / "herd" / "__init__.py").touch()
    return packages


def test_a_checkout_migrates_its_database(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", WRITE, str(tmp_path / "log.db")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(ROOT / "alembic")


def test_an_installed_package_migrates_its_database(tmp_path: Path) -> None:
    packages = installed(tmp_path / "site packages, 100% sure")
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    found = subprocess.run(
        [sys.executable, "-c", WRITE, str(tmp_path / "log.db")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(packages / "herd" / "_alembic")
    assert schema(tmp_path / "log.db") == schema(new_log(tmp_path / "other.db"))


def test_an_installation_without_migrations_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="migrations are missing"):
        migrations.scripts_home(tmp_path)


def test_the_newest_revision_is_the_one_that_alembic_would_go_to(tmp_path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations.scripts_home()))
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.revisions(migrations.scripts_home())[-1]]
    assert database.revision(new_log(tmp_path / "log.db")) == migrations.revisions(migrations.scripts_home())[-1]


def test_the_command_line_migrates_too(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    command = [sys.executable, "-m", "alembic", "-x", f"url=sqlite:///{path}", "upgrade", "head"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert schema(path) == schema(new_log(tmp_path / "other.db"))
    command[-2:] = ["downgrade", "base"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert [name for name, _ in schema(path) if not name.startswith("sqlite_")] == ["alembic_version"]


def older_scripts(directory: Path) -> Path:
    """Migrations as an earlier release had them: only the first."""
    scripts = directory / "scripts"
    shutil.copytree(ROOT / "alembic", scripts, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (scripts / "versions").glob("[0-9]*.py"):
        if not path.name.startswith("0001"):
            path.unlink()
    return scripts


def add_script(scripts: Path, body: str) -> None:
    (scripts / "versions" / "0002_next.py").write_text(
        f"import sqlalchemy as sa\nfrom alembic import op\nrevision = '0002'\ndown_revision = '0001'\n"
        f"def upgrade():\n    op.create_table('fresh', sa.Column('id', sa.Integer))\n    {body}\n",
        encoding="utf-8",
    )


async def test_a_log_of_an_earlier_release_is_brought_up_to_date_and_keeps_its_events(tmp_path: Path) -> None:
    path, scripts = tmp_path / "log.db", older_scripts(tmp_path)
    old = SQLiteStore.open(path, clock=ManualClock(), writer="w", scripts=scripts)
    recorded = [old.append(event) for event in MIXED]
    await old.close()
    assert database.revision(path) == "0001"
    add_script(scripts, "pass")
    new = SQLiteStore.open(path, clock=ManualClock(), writer="w", scripts=scripts)
    assert list(new.read()) == recorded
    await new.close()
    assert database.revision(path) == "0002"
    assert "fresh" in dict(schema(path))


async def test_a_migration_that_fails_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    path, scripts = tmp_path / "log.db", older_scripts(tmp_path)
    old = SQLiteStore.open(path, clock=ManualClock(), writer="w", scripts=scripts)
    recorded = [old.append(event) for event in MIXED]
    await old.close()
    before = schema(path)
    add_script(scripts, "raise ZeroDivisionError")
    with pytest.raises(ZeroDivisionError):
        SQLiteStore.open(path, clock=ManualClock(), writer="w", scripts=scripts)
    assert schema(path) == before
    with closing(open_readonly(path)) as reader:
        assert list(reader.read()) == recorded
    (scripts / "versions" / "0002_next.py").unlink()
    again = SQLiteStore.open(path, clock=ManualClock(), writer="w", scripts=scripts)
    assert list(again.read()) == recorded
    await again.close()


def test_a_migration_that_the_disk_refuses_is_told_in_the_words_of_a_store(tmp_path: Path) -> None:
    path, scripts = tmp_path / "log.db", older_scripts(tmp_path)
    add_script(scripts, "op.execute('INSERT INTO nowhere VALUES (1)')")  # the driver raises no other class for a disk
    with pytest.raises(StoreUnavailable, match=r"cannot open the event log .*log.db: no such table: nowhere"):
        SQLiteStore.open(path, clock=ManualClock(), writer="w", scripts=scripts)


def test_a_log_of_a_later_release_is_not_touched(tmp_path: Path) -> None:
    path = new_log(tmp_path / "log.db")
    with closing(driver.connect(str(path), isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match=r"a later release.*9999"):
        SQLiteStore.open(path, clock=ManualClock(), writer="w")
    assert path.read_bytes() == before


def test_no_package_of_ours_hides_the_library() -> None:
    assert not (ROOT / "alembic" / "__init__.py").exists()
