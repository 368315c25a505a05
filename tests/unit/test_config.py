"""Settings from file and environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel_dask.config import Settings, StoreSettings, load_settings, settings_to_toml
from accel_dask.errors import ConfigError


def test_without_a_file_the_defaults_hold() -> None:
    assert load_settings(environ={}) == Settings()


def test_settings_survive_being_written_and_read(tmp_path: Path) -> None:
    settings = Settings(store=StoreSettings(endpoints=("a:1", "b:2"), password='q"uote\\'))
    file = tmp_path / "accel.toml"
    file.write_text(settings_to_toml(settings))
    assert load_settings(file, {}) == settings


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "accel.toml"
    file.write_text('[store]\nendpoints = ["a:1"]\n[gateway]\nport = 1\n')
    environ = {
        "ACCEL_CONFIG": str(file),
        "ACCEL_GATEWAY_PORT": "4711",
        "ACCEL_STORE_ENDPOINTS": "b:2,c:3",
    }
    settings = load_settings(environ=environ)
    assert settings.gateway.port == 4711
    assert settings.store.endpoints == ("b:2", "c:3")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[stroe]\n", "stroe"),
        ("[store]\nendpoint = 1\n", "endpoint"),
        ('[gateway]\nport = "high"\n', "port"),
        ("[store\n", "cannot read"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "accel.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=named):
        load_settings(file, {})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="no-such-file"):
        load_settings("no-such-file.toml", {})
