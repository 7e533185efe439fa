"""The Galaxy tool in tools/galaxy: it names only what the command has, with its defaults.

A Galaxy is not needed: the command line is filled in here as Galaxy's template would, and read by
the command's own parser."""

import inspect
import re
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import gmvae_nb
import pytest
import yaml
from gmvae_nb import command_line, commands  # noqa: F401
from gmvae_nb.files import OWN_FILES
from gmvae_nb.network import PRESETS
from gmvae_nb.options import parser_of

FOLDER = Path(__file__).parents[1] / "tools/galaxy"
TOOL = ET.parse(FOLDER / "gmvae_train.xml").getroot()
COMMAND = TOOL.findtext("command")
FUNCTION = command_line.COMMANDS[TOOL.get("id")].__wrapped__
ARGUMENTS = inspect.signature(FUNCTION).parameters
CONDITION = re.compile(r"#if (?:str\()?\$(\w+)\)?\n(.*?)#end if\n", re.S)


def params() -> dict[str, ET.Element]:
    "The inputs by the name that Galaxy gives them."
    found = TOOL.findall("inputs/param")
    return {p.get("name") or p.get("argument").lstrip("-"): p for p in found}


def default(param: ET.Element) -> str:
    "What Galaxy fills in where the user says nothing; an empty text means nothing."
    chosen = param.find("option[@selected='true']")
    return param.get("value", "") if chosen is None else chosen.get("value")


def command_line(given: dict[str, str]) -> list[str]:
    "The words of gmvae_train after the template is filled in."
    values = {name: default(param) for name, param in params().items()} | given
    text = CONDITION.sub(lambda m: m[2] if values[m[1]] else "", COMMAND)
    text = re.sub(r"(?<!\\)\$(\w+)", lambda m: values[m[1]], text)
    line = text.replace("\n", " ").rsplit("&& gmvae_train ", 1)[1]
    return shlex.split(line)


def parsed(given: dict[str, str]) -> dict:
    return vars(parser_of(FUNCTION, "gmvae_train").parse_args(command_line(given)))


def test_each_input_is_an_argument_and_has_its_default():
    nothing_said = parsed({"data": "x.h5ad"})
    assert nothing_said.pop("out") == "run" and nothing_said.pop("quiet")
    assert nothing_said.pop("data") == ["cells.h5ad"]
    said = {name: ARGUMENTS[name].default for name in nothing_said if name != "version"}
    assert nothing_said == said
    assert set(params()) <= set(ARGUMENTS)


@pytest.mark.parametrize("name", [name for name in params() if name != "data"])
def test_each_input_reaches_the_command(name):
    param = params()[name]
    words = [o.get("value") for o in param.findall("option")] or ["7"]
    for word in words:
        assert str(parsed({name: word})[name]) == word
    argument = ARGUMENTS[name].annotation
    assert (param.get("type") == "integer") == (argument.type is int)
    if param.get("type") == "select":
        assert set(words) == {*(argument.choices or PRESETS)}


def test_what_comes_out_is_written_by_a_run():
    files = [data.get("from_work_dir") for data in TOOL.findall("outputs/data")]
    assert files and {f.removeprefix("run/") for f in files} <= set(OWN_FILES)
    assert int(TOOL.find("tests/test").get("expect_num_outputs")) == len(files)


def test_the_version_is_that_of_the_package_and_the_shed_names_the_tool():
    assert TOOL.findtext("macros/token[@name='@TOOL_VERSION@']") == gmvae_nb.__version__
    shed = yaml.safe_load((FOLDER / ".shed.yml").read_text(encoding="utf-8"))
    assert shed["name"] == TOOL.get("id")
