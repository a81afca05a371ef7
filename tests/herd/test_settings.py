"""A setting has one meaning wherever it comes from, and a mistake in one is named with its place."""

from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.errors import SettingsError
from herd.settings import (
    NODE_PREFIX,
    ROUTER_PREFIX,
    NodeSettings,
    RouterSettings,
    catalogue,
    env_file,
    load,
    read_env_file,
    unknown,
)


def router(**sources: dict[str, str] | dict[str, object]) -> RouterSettings:
    """Load the router's settings from nothing but these sources."""
    return load(RouterSettings, ROUTER_PREFIX, **({"environment": {}} | sources)).values  # pyright: ignore[reportArgumentType]


def test_without_any_source_the_defaults_hold() -> None:
    loaded = load(RouterSettings, ROUTER_PREFIX, environment={})
    assert loaded.values == RouterSettings()
    assert set(loaded.origins.values()) == {"default"}


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() -> None:
    file = {"FLEET_PORT": "1", "FLEET_HOST": "file", "FLEET_POLICY": "file"}
    environment = {"FLEET_PORT": "2", "FLEET_HOST": "environment"}
    loaded = load(RouterSettings, ROUTER_PREFIX, flags={"port": 3, "host": None}, environment=environment, file=file)
    assert (loaded.values.port, loaded.values.host, loaded.values.policy) == (3, "environment", "file")
    assert loaded.origins["port"] == "flag"
    assert loaded.origins["host"] == "environment"
    assert loaded.origins["policy"] == "file"
    assert loaded.origins["max_queue"] == "default"


def test_the_node_variables_that_users_know_have_an_effect() -> None:
    environment = {
        "FLEET_NODE_NODE_ID": "ash",
        "FLEET_NODE_ROUTER_URL": "http://router:11435",
        "FLEET_NODE_OLLAMA_HOST": "http://localhost:1",
    }
    values = load(NodeSettings, NODE_PREFIX, environment=environment).values
    assert (values.node_id, values.router_url, values.ollama_host) == tuple(environment.values())


@pytest.mark.parametrize(("text", "meant"), [("true", True), ("false", False), ("1", True), ("0", False)])
def test_a_boolean_is_what_it_says(text: str, meant: bool) -> None:
    assert router(environment={"FLEET_MDNS": text}).mdns is meant


def test_a_word_may_be_written_in_any_case() -> None:
    assert router(environment={"FLEET_LOG_LEVEL": "debug"}).log_level == "DEBUG"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"flags": {"port": 70000}}, "--port must be a whole number from 0 to 65535, not 70000"),
        ({"environment": {"FLEET_PORT": "many"}}, "FLEET_PORT must be a whole number from 0 to 65535, not 'many'"),
        ({"file": {"FLEET_PORT": "-1"}}, "FLEET_PORT in the env file must be a whole number from 0 to 65535, not '-1'"),
        (
            {"environment": {"FLEET_READ_TIMEOUT": "0"}},
            "FLEET_READ_TIMEOUT must be a number from 0.01 to 86400, not '0'",
        ),
        (
            {"environment": {"FLEET_MAX_RETRIES": "-1"}},
            "FLEET_MAX_RETRIES must be a whole number from 0 to 100, not '-1'",
        ),
        ({"environment": {"FLEET_MDNS": "yes"}}, "FLEET_MDNS must be true or false, not 'yes'"),
        ({"environment": {"FLEET_DURABILITY": "some"}}, "FLEET_DURABILITY must be one of full, normal, not 'some'"),
        (
            {"environment": {"FLEET_HOST": "\u00fc"}},
            "FLEET_HOST must be an address or a name of this machine, not '\u00fc'",
        ),
        ({"flags": {"host": ""}}, "--host must be an address or a name of this machine, not ''"),
        ({"flags": {"data_dir": ""}}, "--data-dir must be a directory, not nothing"),
        (
            {"file": {"FLEET_POLICY": "a\0"}},
            "FLEET_POLICY in the env file must be text without control characters, not 'a\\x00'",
        ),
        (
            {"environment": {"FLEET_DATA_DIR": "~nobody-of-this-name/x"}},
            "FLEET_DATA_DIR is '~nobody-of-this-name/x', and there is no such home directory",
        ),
    ],
)
def test_a_value_without_sense_is_refused_in_plain_words(sources: dict[str, dict[str, str]], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        router(**sources)
    assert caught.value.message == message


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e309", "-1"])
@pytest.mark.parametrize(("kind", "prefix"), [(RouterSettings, ROUTER_PREFIX), (NodeSettings, NODE_PREFIX)])
def test_every_number_is_finite_and_has_bounds(kind: type[msgspec.Struct], prefix: str, value: str) -> None:
    numbers = [setting for setting in catalogue(kind, prefix) if type(setting.default) in (int, float)]
    assert numbers
    for setting in numbers:
        with pytest.raises(SettingsError, match=f"^{setting.variable} must be a .*number from .* to .*, not '{value}'"):
            load(kind, prefix, environment={setting.variable: value})


def test_an_empty_variable_counts_as_not_set() -> None:
    environment = {"FLEET_HOST": "", "FLEET_PORT": "", "FLEET_DATA_DIR": "", "FLEET_MDNS": ""}
    loaded = load(RouterSettings, ROUTER_PREFIX, environment=environment, file={"FLEET_PORT": "1", "FLEET_POLICY": ""})
    assert loaded.values == RouterSettings(port=1)
    assert loaded.origins["host"] == "default"
    assert loaded.origins["port"] == "file"


def test_a_home_that_nobody_has_is_refused_for_the_env_file_too() -> None:
    with pytest.raises(SettingsError, match="FLEET_ENV_FILE is '~nobody-of-this-name/env'"):
        env_file({"FLEET_ENV_FILE": "~nobody-of-this-name/env"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "fe80::1%eth0", "localhost", "router.local"])
def test_an_address_to_listen_on_may_be_of_any_kind(host: str) -> None:
    assert router(environment={"FLEET_HOST": host}).host == host


def test_an_agent_that_reports_without_a_pause_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"FLEET_NODE_HEARTBEAT_INTERVAL must be a number from 0\.01 to 86400"):
        load(NodeSettings, NODE_PREFIX, environment={"FLEET_NODE_HEARTBEAT_INTERVAL": "0"})


def test_zero_is_allowed_where_it_means_not_to_wait() -> None:
    values = router(environment={"FLEET_QUEUE_TIMEOUT": "0", "FLEET_SHUTDOWN_GRACE": "0"})
    assert (values.queue_timeout, values.shutdown_grace) == (0.0, 0.0)


@pytest.mark.parametrize(("timeout", "offline"), [("30", "30"), ("60", "30"), ("15", "10")])
def test_a_node_cannot_be_offline_before_it_is_degraded(timeout: str, offline: str) -> None:
    with pytest.raises(SettingsError) as caught:
        router(environment={"FLEET_HEARTBEAT_TIMEOUT": timeout, "FLEET_HEARTBEAT_OFFLINE": offline})
    assert f"FLEET_HEARTBEAT_OFFLINE is {offline} s" in caught.value.message
    assert f"FLEET_HEARTBEAT_TIMEOUT, which is {timeout} s" in caught.value.message


def test_the_env_file_is_read_as_shells_write_it(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text(
        "# a comment\n\nFLEET_PORT=1\nexport FLEET_HOST='0.0.0.0'\n  FLEET_POLICY = \"classic\"\nFLEET_DATA_DIR=a=b\n"
    )
    assert read_env_file(path) == {
        "FLEET_PORT": "1",
        "FLEET_HOST": "0.0.0.0",
        "FLEET_POLICY": "classic",
        "FLEET_DATA_DIR": "a=b",
    }


def test_an_env_file_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_env_file(tmp_path / "none") == {}


@pytest.mark.parametrize("line", ["FLEET_PORT", "two words=1", "=1"])
def test_a_bad_line_of_the_env_file_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "env"
    path.write_text(f"FLEET_PORT=1\n{line}\n")
    with pytest.raises(SettingsError, match="line 2"):
        read_env_file(path)


def test_an_env_file_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        read_env_file(tmp_path)


@given(st.text())
def test_no_text_in_the_env_file_ends_in_anything_but_settings_or_a_settings_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "env"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with suppress(SettingsError):
        assert all(key.isidentifier() for key in read_env_file(path))


def test_another_env_file_can_be_named() -> None:
    assert env_file({"FLEET_ENV_FILE": "/etc/herd"}) == Path("/etc/herd")
    assert env_file({}).name == "env"
    assert env_file({}).parent.name == ".fleet-manager"


def test_unknown_variables_are_found_and_explained() -> None:
    names = ["FLEET_PROT", "FLEET_PORT", "FLEET_NODE_NODE_ID", "FLEET_ENV_FILE", "FLEET_ANYTHING_ELSE", "PATH"]
    assert unknown(names) == {"FLEET_ANYTHING_ELSE": "", "FLEET_PROT": "FLEET_PORT"}


@pytest.mark.parametrize(("kind", "prefix"), [(RouterSettings, ROUTER_PREFIX), (NodeSettings, NODE_PREFIX)])
def test_every_setting_says_what_it_means_and_has_a_default_that_it_accepts(
    kind: type[msgspec.Struct], prefix: str
) -> None:
    settings = catalogue(kind, prefix)
    assert [setting.name for setting in settings] == list(kind.__struct_fields__)
    for setting in settings:
        assert setting.about.endswith(".")
        assert setting.variable == prefix + setting.name.upper()
        given = str(setting.default).lower() if isinstance(setting.default, bool) else str(setting.default)
        if not given:
            continue  # in the environment that is no value
        loaded = load(kind, prefix, environment={setting.variable: given})
        assert getattr(loaded.values, setting.name) == setting.default
        assert loaded.origins[setting.name] == "environment"
