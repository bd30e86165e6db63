"""Settings: every key must be read, and errors name the option."""

import pytest

from difftumor.errors import ConfigError
from difftumor.scans.organs import ORGANS, Organ
from stages.run.entry import CONFIGS, compose_config
from stages.run.settings import Settings, construct, to_plain


def test_keys_count_as_read_only_when_read():
    settings = Settings({"a": 1, "b": {"c": 2, "d": [3, 4]}, "e": {"f": 5}})
    assert settings.a == 1
    assert settings.b.d == (3, 4)
    assert settings.unread() == ["b.c", "e.f"]
    assert dict(**settings.e) == {"f": 5}
    assert settings.unread() == ["b.c"]


def test_a_key_that_nothing_reads_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"'b\.typo'"):
        Settings({"b": {"typo": 1}}).check_all_read()


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"lacks 'b\.c'"):
        _ = Settings({"b": {}}).b.c


def test_construct_names_unknown_missing_and_refused_options():
    def room(*, width: int, height: int = 2) -> int:
        if width < 0:
            raise ValueError("width is negative")
        return width * height

    def settings(**values):
        return Settings({"room": values}).room

    assert construct(room, settings(width=3)) == 6
    assert construct(room, settings(), width=5, height=1) == 5
    with pytest.raises(ConfigError, match=r"'room\.depth': known ones are width, height"):
        construct(room, settings(width=3, depth=1))
    with pytest.raises(ConfigError, match=r"lacks 'room\.width'"):
        construct(room, settings())
    with pytest.raises(ConfigError, match=r"'room' do not work: width is negative"):
        construct(room, settings(width=-1))
    with pytest.raises(ConfigError, match=r"'room' do not work: .*'str'"):
        construct(room, settings(width="wide"))


@pytest.mark.parametrize("file", sorted((CONFIGS / "organ").glob("*.yaml")), ids=lambda file: file.stem)
def test_organ_configs_are_the_registered_organs(file):
    config = compose_config("autoencoder", [f"+organ={file.stem}"])
    assert construct(Organ, Settings(to_plain(config)).organ) == ORGANS[file.stem]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.acelerator=cpu", r"Unknown option 'trainer\.acelerator': did you mean 'trainer\.accelerator'\?"),
        ("experiment=nope", r"There is no experiment 'nope': choose from demo"),
        ("trainer=nope", r"There is no trainer 'nope': choose from auto, cpu, ddp, gpu"),
        ("data.root", r"cannot be composed .*data\.root"),
    ],
)
def test_bad_overrides_are_one_sentence(override, message):
    with pytest.raises(ConfigError, match=message) as error:
        compose_config("autoencoder", [override])
    assert "\n" not in str(error.value)
