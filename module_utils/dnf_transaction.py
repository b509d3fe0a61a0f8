# SPDX-License-Identifier: Apache-2.0
"""A transaction of dnf, planned or carried out: a program for the Python that dnf itself runs under.

That Python is another one than Ansible's on Enterprise Linux 8, and as old as 3.6. `apptainer_dnf` sends this
file there and runs it: ``dnf_transaction.py REQUEST``, a JSON file. It prints its answer as JSON.

The request: ``action`` is ``offer``, ``plan`` or ``apply``. ``repository``, null for those of the node alone:
``id``, ``url`` and ``key``, a file. ``own_excludes``: words of dnf.conf's excludes that are ours and don't
count. ``refresh``: whether to ask all repositories for what is new. ``name``: the package to offer.
``install``: packages, ``NAME-VERSION`` each, from the repository. ``files``: package files instead.
``again``: whether to install them again where they are. ``helpers``, ``remove``: names. ``folder``: for
downloads.

The answer to ``offer``: ``offered`` and ``hidden``, versions, newest first, and ``holders``, what of the
site's settings hides these. To ``plan``: ``steps``, each with action, package, version and previous;
``downloads``, files of packages from the repository; ``holders``, as above. To ``apply``: nothing.
``problem``: what dnf says that is wrong; ``locked``: who has its locks.

Source of the interface: DNF API Reference of dnf 4, and `ansible.builtin.dnf`.
"""

import fnmatch
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List

try:
    import dnf
    import dnf.exceptions
    import hawkey
except ImportError:
    # Ansible's Python, which only takes this file along.
    dnf = None

Answer = Dict[str, Any]


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    # What dnf, its plugins and the scripts of packages print is none of the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        with dnf.Base() as base:
            result = {"offer": offer, "plan": plan, "apply": apply}[request["action"]](base, request)
    except dnf.exceptions.LockError as error:
        result = {"locked": str(error)}
    except (dnf.exceptions.Error, OSError) as error:
        result = {"problem": str(error)}
    json.dump(result, answer)
    answer.close()


def offer(base: Any, request: Answer) -> Answer:
    prepare(base, request)

    def versions(**options: int) -> List[str]:
        query = base.sack.query(**options).available().filterm(name=request["name"])
        query.filterm(arch=[base.conf.basearch, "noarch"])
        if request["repository"]:
            query.filterm(reponame=request["repository"]["id"])
        found = sorted(query, reverse=True)
        return list(dict.fromkeys(package.evr for package in found))

    shown = versions()
    hidden = [version for version in versions(flags=hawkey.IGNORE_EXCLUDES) if version not in shown]
    return {"offered": shown, "hidden": hidden, "holders": holders(base, request["name"])}


def plan(base: Any, request: Answer) -> Answer:
    resolve(base, request)
    new = {package.name: package for package in base.transaction.install_set}
    old = {package.name: package.evr for package in base.transaction.remove_set}
    steps = [("install", name, new[name].evr, old.get(name, "")) for name in sorted(new)]
    steps += [("remove", name, "", old[name]) for name in sorted(set(old) - set(new))]
    own = request["repository"] and request["repository"]["id"]
    downloads = [package for package in new.values() if package.reponame == own]
    base.download_packages(downloads)
    paths = [package.localPkg() for package in downloads]
    return {"steps": steps, "downloads": paths, "holders": holders(base, request["name"])}


def apply(base: Any, request: Answer) -> Answer:
    resolve(base, request)
    packages = list(base.transaction.install_set)
    base.download_packages(packages)
    for package in packages:
        # 0 is good, also where a repository says that nothing is to be checked; 1 is a key that rpm lacks.
        code, error = base.package_signature_check(package)
        if code == 1:
            base.package_import_key(package, askcb=lambda *_: True)
        elif code != 0:
            raise dnf.exceptions.Error(error)
    # For `dnf history`.
    base.args = ["apptainer_package (Ansible)", *request["install"]]
    base.do_transaction()
    return {}


def prepare(base: Any, request: Answer) -> None:
    """Read the settings and repositories of the node, and put ours in as it is to be."""
    conf = base.conf
    conf.read()
    conf.substitutions.update_from_etc(conf.installroot, varsdir=conf.varsdir)
    if not conf.substitutions.get("releasever"):
        conf.substitutions["releasever"] = ""
    conf.exit_on_lock = True
    conf.best = True
    # Only what has been asked for is to go.
    conf.clean_requirements_on_remove = False
    conf.destdir = request["folder"]
    excluded = list(conf.excludepkgs)
    for word in request["own_excludes"]:
        excluded.remove(word)
    conf.excludepkgs = excluded
    base.init_plugins()
    base.pre_configure_plugins()
    base.read_all_repos()
    own = request["repository"]
    base.repos.pop("apptainer", None)
    if own:
        options = {"baseurl": [own["url"]], "gpgcheck": True, "gpgkey": ["file://" + own["key"]]}
        # Of one that can't be read, nothing is known: skipping it would be a guess.
        base.repos.add_new_repo(own["id"], conf, skip_if_unavailable=False, metadata_expire=0, **options)
    base.configure_plugins()
    if request["refresh"]:
        for repository in base.repos.iter_enabled():
            repository.metadata_expire = 0
    base.fill_sack()


def resolve(base: Any, request: Answer) -> None:
    prepare(base, request)
    own = request["repository"] and request["repository"]["id"]
    for specification in request["install"]:
        base.install(specification, reponame=own or None)
        if request["again"]:
            base.reinstall(specification)
    # No settings of the node exclude these; whether they would is asked for in the plan.
    for package in base.add_remote_rpms(request["files"]) if request["files"] else ():
        if request["again"]:
            base.package_reinstall(package)
        else:
            base.package_install(package)
    for name in request["helpers"]:
        base.install(name)
    for name in request["remove"]:
        base.remove(name)
    base.resolve()


def holders(base: Any, name: str) -> List[str]:
    """Return what may hide versions of a package: settings of dnf and of its plugin versionlock."""
    patterns = [("excludepkgs in " + base.conf.config_file_path, base.conf.excludepkgs)]
    for repository in base.repos.iter_enabled():
        patterns.append(("excludepkgs of repository " + repository.id, repository.excludepkgs))
        if repository.includepkgs:
            patterns.append(("includepkgs of repository " + repository.id, ["*"]))
    found = [where for where, words in patterns if any(fnmatch.fnmatch(name, word) for word in words)]
    locks = Path(base.conf.config_file_path).parent / "plugins/versionlock.list"
    for line in locks.read_text().splitlines() if locks.exists() else ():
        if name in line and not line.startswith("#"):
            found.append("{}: {}".format(locks, line.strip()))
    return found


if __name__ == "__main__":
    main()
