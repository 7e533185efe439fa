"""What a release is made of: workflows, recipe, image, citation, versions of the site, lists."""

import hashlib
import json
import re
import runpy
import shlex
import sys
import tarfile
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from gmvae_nb import commands
from gmvae_nb.options import parser_of, spelled

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tools")]
import api_page  # noqa: E402
import conda_recipe  # noqa: E402
import release  # noqa: E402
import scverse_entry  # noqa: E402
import versions  # noqa: E402

SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yaml").read_text(encoding="utf-8"))


# --- workflows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_actions_are_pinned_by_hash_and_nobody_may_write_unasked(path):
    text = path.read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)", text)
    pinned = r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+(\.\d+)*"
    assert used and [action for action in used if not re.fullmatch(pinned, action)] == []
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


def test_one_action_is_pinned_to_one_hash():
    text = "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    used = {action.split("@")[0]: set() for action in re.findall(r"uses: (\S+)", text)}
    for action in re.findall(r"uses: (\S+)", text):
        used[action.split("@")[0]].add(action)
    assert [hashes for hashes in used.values() if len(hashes) > 1] == []


def test_only_what_publishes_may_and_only_what_was_tried_is_published():
    found = workflow("release")
    assert found[True] == {"push": {"tags": ["v*"]}}  # YAML takes `on` for a truth
    jobs = found["jobs"]
    may = {name: job.get("permissions", {}) for name, job in jobs.items()}
    assert [name for name in jobs if "id-token" in may[name]] == ["publish"]
    assert jobs["publish"]["environment"]["name"] == "pypi"
    assert [jobs[name]["needs"] for name in ("try", "publish", "announce")] == [
        "build",
        "try",
        "publish",
    ]
    told = (ROOT / ".github/workflows/release.yaml").read_text(encoding="utf-8")
    assert "password" not in re.sub("#.*", "", told) and "secrets." not in told


def test_all_pythons_and_systems_are_tried():
    jobs = workflow("test")["jobs"]
    pythons = jobs["test"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13", "3.14"] and SETTINGS["min_python"] == pythons[0]
    rows = jobs["install"]["strategy"]["matrix"]["include"]
    assert {row["system"].split("-")[0] for row in rows} == {"ubuntu", "macos", "windows"}
    tried = {(row["python"], row["set"]) for row in rows}
    assert {("3.11", "oldest"), ("3.14", "newest")} <= tried


# --- a release ------------------------------------------------------------------------------------


@pytest.fixture
def ready(tmp_path):
    "A made-up project, ready for version 1.2.3."
    files = {
        "settings.ini": "[DEFAULT]\nversion = 1.2.3\n",
        "gmvae_nb/__init__.py": '__version__ = "1.2.3"\n',
        "CITATION.cff": "cff-version: 1.2.0\nversion: 1.2.3\n",
        ".zenodo.json": '{"version": "1.2.3"}',
        "CHANGELOG.md": "# Changes\n\n## 1.2.3 (2027-01-02)\n\n"
        "### Added\n\n- It.\n\n## 1.2.2 (x)\n\n- Old.\n",
    }
    (tmp_path / "gmvae_nb").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_release_that_is_ready_prints_its_changes(ready, capsys):
    assert release.main(["v1.2.3"], ready) == 0
    assert capsys.readouterr().out == "### Added\n\n- It.\n"


@pytest.mark.parametrize(
    "name, old, new, told",
    [
        ("settings.ini", "1.2.3", "1.2.4", "settings.ini says 1.2.4, the tag v1.2.3"),
        ("gmvae_nb/__init__.py", "1.2.3", "1", "gmvae_nb/__init__.py says 1,"),
        ("CITATION.cff", "version: 1.2.3", "version: 9", "CITATION.cff says 9,"),
        (".zenodo.json", "1.2.3", "0", ".zenodo.json says 0,"),
        ("CHANGELOG.md", "2027-01-02", "unreleased", "no heading '## 1.2.3 (YYYY-MM-DD)'"),
        ("CHANGELOG.md", "### Added\n\n- It.\n", "", "says nothing of 1.2.3"),
    ],
)
def test_what_is_not_ready_is_told(ready, capsys, name, old, new, told):
    path = ready / name
    path.write_text(path.read_text().replace(old, new))
    assert release.main(["v1.2.3"], ready) == 1
    out, err = capsys.readouterr()
    assert told in err and err.count("\n") == 1 and not out


def test_all_files_say_the_same_version_and_the_same_of_the_project():
    assert set(release.versions(ROOT).values()) == {SETTINGS["version"]}
    zenodo = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert zenodo["title"] == citation["title"] and zenodo["license"] == citation["license"]
    assert zenodo["keywords"] == citation["keywords"]
    authors = [author["name"] for author in citation["authors"]]
    assert [creator["name"] for creator in zenodo["creators"]] == authors


def test_who_finds_a_hole_is_sent_where_somebody_reads():
    form = f"{SETTINGS['git_url']}/security/advisories/new"
    for name in ("SECURITY.md", ".github/CODE_OF_CONDUCT.md", ".github/ISSUE_TEMPLATE/config.yml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert form in text and "noreply" not in text, name


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")))
def test_templates_of_issues_are_forms(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem != "config":
        assert form["name"] and form["description"]
        assert any(part.get("validations", {}).get("required") for part in form["body"])


# --- the recipe and the image ---------------------------------------------------------------------


def test_the_recipe_is_what_settings_say_and_of_this_sdist(tmp_path):
    sdist = tmp_path / "gmvae_nb-0.tar.gz"
    with tarfile.open(sdist, "w:gz"):
        pass
    text = conda_recipe.recipe(sdist)
    assert hashlib.sha256(sdist.read_bytes()).hexdigest() in text
    assert f'{{% set version = "{SETTINGS["version"]}" %}}' in text
    filled = (
        re.sub(r"\{%.*%\}", "", text).replace("{{ version }}", "1").replace("{{ PYTHON }}", "p")
    )
    found = yaml.safe_load(filled.replace("{{ python_min }}", "3.11"))
    run = [line.split()[0] for line in found["requirements"]["run"]]
    needs = [re.match(r"[\w.-]+", word)[0] for word in SETTINGS["requirements"].split()]
    assert run == ["python", *(conda_recipe.NAMES.get(name, name) for name in needs)]
    assert "gmvae = gmvae_nb.umbrella:gmvae" in found["build"]["entry_points"]
    assert conda_recipe.needed("torch>=2.6") == "pytorch >=2.6"
    assert conda_recipe.needed("pynndescent<0.7") == "pynndescent <0.7"


def test_the_scverse_entry_has_what_their_list_asks_for():
    found = yaml.safe_load(scverse_entry.entry())
    assert found["version"] == f"v{SETTINGS['version']}" and found["install"] == {
        "pypi": "gmvae_nb"
    }
    assert found["tags"] == SETTINGS["keywords"].split() and len(set(found["tags"])) > 3
    assert found["project_home"] == SETTINGS["git_url"] and found["contact"] == [SETTINGS["user"]]
    page = found["tutorials_home"].removeprefix(found["documentation_home"])
    assert (ROOT / "nbs" / page).with_suffix(".ipynb").is_file()
    assert found["license"] in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    target, _, rest = found["test_command"].partition(" ")
    assert target == "make" and f"\n{rest}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "## What to expect" in (ROOT / "README.md").read_text(encoding="utf-8")  # of support


def test_the_image_copies_what_is_there_and_is_nobodys_root():
    folder = ROOT / "tools/docker"
    lines = (folder / "Dockerfile").read_text(encoding="utf-8").split("\n")
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--" not in line]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    assert sum(copied, []) and set(sum(copied, [])) == kept
    assert all((ROOT / name).exists() for name in kept)
    steps = [line.split()[0] for line in lines if line[:1].isupper()]
    assert steps.index("USER") < steps.index("ENTRYPOINT") and "USER root" not in lines
    assert 'ENTRYPOINT ["gmvae"]' in lines


# --- the pages ------------------------------------------------------------------------------------


def site(folder: Path, text: str) -> Path:
    (folder / "images").mkdir(parents=True)
    for name in ("index.html", "images/a.png"):
        (folder / name).write_text(text)
    return folder


def test_versions_of_the_site_lie_beside_one_another(tmp_path):
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / ".git").write_text("kept")
    order = ["v0.9.0", "main", "v0.10.0", "v0.10.0rc1", "main", "v0.9.0"]
    for i, name in enumerate(order):
        made = site(tmp_path / f"site{i}", f"{name} {i}")
        (made / f"only{i}.html").write_text("")
        versions.put(made, pages, name)
    read = {
        name: (pages / name / "index.html").read_text() for name in (".", *order[2:4], "v0.9.0")
    }
    assert read == {
        ".": "main 4",
        "v0.10.0": "v0.10.0 2",
        "v0.10.0rc1": "v0.10.0rc1 3",
        "v0.9.0": "v0.9.0 5",
    }
    assert (pages / "only4.html").exists() and not (pages / "only1.html").exists()
    assert not (pages / "v0.9.0/only0.html").exists() and (pages / ".git").exists()
    links = re.findall('href="(.*?)"', (pages / "versions.html").read_text())
    assert links == ["./", "v0.10.0/", "v0.10.0rc1/", "v0.9.0/"]


def test_the_page_of_all_functions_is_in_step(capsys):
    assert api_page.main(["--check"]) == 0, capsys.readouterr().out


def test_a_module_in_no_group_and_a_page_out_of_step_are_told(tmp_path, monkeypatch, capsys):
    package = tmp_path / "gmvae_nb"
    package.mkdir()
    head = "# File to edit: ../nbs/a.ipynb.\n__all__ = ['f', 'C', 'N']\nN = 1\n"
    body = "def f(x, *, y=1):\n    'Does\n    it. | More.'\n\n\nclass C:\n    'Is.'\n\n"
    body += "    def __init__(self, a):\n        pass\n\n\ndef _own():\n    pass\n"
    (package / "a.py").write_text(
        f"'Says a.'\n{head}{body}".replace("'Does\n", "'''Does\n").replace("More.'", "More.'''")
    )
    monkeypatch.setattr(api_page, "PACKAGE", package)
    monkeypatch.setattr(api_page, "PAGE", tmp_path / "api.ipynb")
    monkeypatch.setattr(api_page, "GROUPS", {"First": "a"})
    assert api_page.main(["--check"]) == 1 and "out of step" in capsys.readouterr().out
    assert api_page.main([]) == 0 and api_page.main(["--check"]) == 0
    text = "".join(json.loads((tmp_path / "api.ipynb").read_text())["cells"][2]["source"])
    assert "| `f(x, *, y)` | Does it. \\| More. |\n| `C(a)` | Is. |" in text and "_own" not in text
    (package / "b.py").write_text(f"'Says b.'\n{head}")
    with pytest.raises(ValueError, match=r"no module: \['b'\]"):
        api_page.main([])


# --- Snakemake ------------------------------------------------------------------------------------


def called_by_wrapper(monkeypatch, options, input=()):
    "What gmvae_train is given by the rule."
    called = []
    shell = ModuleType("snakemake.shell")
    shell.shell = called.append
    monkeypatch.setitem(sys.modules, "snakemake", ModuleType("snakemake"))
    monkeypatch.setitem(sys.modules, "snakemake.shell", shell)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = SimpleNamespace(
        input=list(input),
        output=["runs/K2/annotated.h5ad"],
        params={"options": options},
        threads=1,
        log_fmt_shell=lambda **_: "> log",
    )
    job.params = type("Params", (dict,), {"data": "kang_pbmc"})(job.params)
    wrapper = ROOT / "tools/snakemake/gmvae_train/wrapper.py"
    runpy.run_path(str(wrapper), init_globals={"snakemake": job})
    (line,) = called
    name, *words = shlex.split(line.removesuffix(" > log"))
    function = commands.COMMANDS[name].__wrapped__
    return vars(parser_of(function, name).parse_args(spelled(words, ["data"])))


def test_the_wrapper_calls_a_command_that_is_understood(monkeypatch):
    options = dict(K=2, batch_key="my batch", labels_key=None, overwrite=True, quiet=False)
    options |= dict(preset="", max_epochs="")  # as --config preset= gives it
    given = called_by_wrapper(monkeypatch, options)
    assert given["data"] == ["kang_pbmc"] and given["out"] == "runs/K2"
    assert given["batch_key"] == "my batch" and given["K"] == 2 and given["labels_key"] is None
    assert given["preset"] == "recommended" and given["max_epochs"] is None
    assert given["resume"] and given["overwrite"] and not given["quiet"]


def test_the_wrapper_hands_on_zeros_lists_and_all_files(monkeypatch):
    keys = ["chemistry", "time point"]
    options = dict(K=0, alpha=0.0, max_epochs=0, categorical_covariate_keys=keys)
    given = called_by_wrapper(monkeypatch, options, input=["a b.h5ad", "c.h5ad"])
    assert given["data"] == ["a b.h5ad", "c.h5ad"]
    assert (given["K"], given["alpha"], given["max_epochs"]) == (0, 0, 0)  # which it refuses
    assert given["categorical_covariate_keys"] == keys
