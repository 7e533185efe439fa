"""Prints constraints with the oldest version of each dependency that settings.ini allows.

python tools/oldest.py > oldest.txt
"""

import configparser
import re
from pathlib import Path

settings = configparser.ConfigParser()
settings.read(Path(__file__).parents[1] / "settings.ini")
for requirement in settings["DEFAULT"]["requirements"].split():
    if found := re.match(r"([\w.-]+).*>=([\d.]+)", requirement):
        name, version = found.groups()
        any_patch = ".*" if version.count(".") < 2 else ""
        print(f"{name}=={version}{any_patch}")
