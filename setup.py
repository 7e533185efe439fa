"""Reads everything from settings.ini, where the project is described."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


readme = (here / "README.md").read_text(encoding="utf-8")
# PyPI shows the picture only by an absolute address
repository = cfg["git_url"].removeprefix("https://github.com/")
files = f"https://raw.githubusercontent.com/{repository}/v{cfg['version']}"
site = cfg["doc_host"] + cfg["doc_baseurl"]


class WithNotebook(build_py):
    "Puts the notebook of the results into the wheel, for gmvae_notebook."

    def run(self):
        super().run()
        if not self.editable_mode:  # there it lies in nbs/
            folder = Path(self.build_lib) / cfg["lib_name"] / "notebooks"
            self.mkpath(str(folder))
            self.copy_file(str(here / "nbs/06_results.ipynb"), str(folder))


setup(
    cmdclass={"build_py": WithNotebook},
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.replace("](nbs/", f"]({files}/nbs/"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": site,
        "Source": cfg["git_url"],
        "Changelog": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md",
        "Issues": f"{cfg['git_url']}/issues",
    },
    keywords=cfg["keywords"].split(),
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Framework :: Jupyter",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Operating System :: MacOS",
        "Operating System :: Microsoft :: Windows",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{n}" for n in range(11, 15)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
        "Typing :: Typed",
    ],
    packages=find_packages(include=[cfg["lib_name"], cfg["lib_name"] + ".*"]),
    # by name: what include_package_data takes for packages, setuptools warns of
    include_package_data=False,
    package_data={
        cfg["lib_name"]: ["py.typed", "datasets/*.h5ad", "templates/*"]
    },
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={
        "ray": cfg["ray_requirements"].split(),
        "dev": cfg["dev_requirements"].split(),
    },
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
