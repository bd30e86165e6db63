import subprocess

import pytest

from stages.cluster import checkout
from stages.cluster.checkout import Checkout


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setattr(checkout, "REPOSITORY", tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "code.py").write_text("1")

    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    return tmp_path


def test_changed_code_is_noticed_and_other_files_do_not_matter(repository):
    clean = Checkout.now()
    assert clean.commit
    assert not clean.dirty
    (repository / "runs").mkdir()
    (repository / "runs" / "log").touch()
    assert Checkout.now() == clean
    seen = {clean.changes}
    for name, text in (("code.py", "2"), ("code.py", "3"), ("new.py", ""), ("new.py", "4")):
        (repository / "stages" / name).write_text(text)
        found = Checkout.now()
        assert found.dirty
        assert found.changes not in seen
        seen.add(found.changes)
    warning = clean.warning(found)
    assert warning.startswith("Warning: the checkout has changed since this job was submitted: then commit ")
    assert f"with changes {found.changes[:8]}" in warning
    assert clean.warning(clean) == ""


def test_links_and_repositories_that_git_does_not_know_are_read(repository):
    (repository / "stages" / "link").symlink_to("nowhere")
    first = Checkout.now()
    subprocess.run(["git", "init", "-q", "stages/other"], cwd=repository, check=True)
    (repository / "stages" / "other" / "new.py").touch()
    second = Checkout.now()
    (repository / "stages" / "link").unlink()
    (repository / "stages" / "link").symlink_to("elsewhere")
    assert len({first.changes, second.changes, Checkout.now().changes, ""}) == 4


def test_code_that_is_unknown_has_not_changed():
    assert Checkout("abc").warning(Checkout(None)) == Checkout(None).warning(Checkout("abc", "d")) == ""


def test_without_git_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(checkout, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert str(Checkout.now()) == "code without git"
