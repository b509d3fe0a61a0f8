#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: what there is to do for the images that a site declares."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_plan
short_description: Say what there is to do for the images that a site declares
description:
  - Holds declared images against C(images.lock), on the controller. Those that are not locked are to be made.
  - Refuses what is not pinned, definitions that take things from elsewhere, and a changed source under a name
    and version that is locked.
  - Packs the definitions of images to be made, with the files they take from their folders, for the module
    M(image_build).
options:
  images:
    description: The images, as C(image_store_images) of the role image_store describes them.
    type: list
    elements: dict
    required: true
  lock:
    description: The content of C(images.lock).
    type: dict
    default: {images: []}
  folder:
    description: Folder of the controller at which relative paths of definitions and files begin.
    type: path
    required: true
  recipes:
    description: Folder of the controller for packed definitions; made if it is missing.
    type: path
    required: true
  bootstrap:
    description: With which agents stages of a definition may begin.
    type: list
    elements: str
    default: [docker, localimage, oras, scratch]
attributes:
  check_mode:
    support: full
    description: Packs definitions in check mode, too, as they are no more than copies of what is there.
  diff_mode:
    support: none
    description: There is nothing to show a difference of.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: See which images are to be made
  image_plan:
    images: "{{ image_store_images }}"
    lock: "{{ lookup('ansible.builtin.file', 'images.lock') | from_yaml }}"
    folder: "{{ inventory_dir }}"
    recipes: /tmp/recipes
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
make:
  description: The images to be made, in this order.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name.
      type: str
    version:
      description: The version.
      type: str
    file_name:
      description: The name of its file.
      type: str
      sample: hello_1.0.sif
    source:
      description: What it is made from, on one line.
      type: str
    reference:
      description: The image in a registry that it is made from, or null.
      type: str
    recipe:
      description: The packed definition on the controller, or null.
      type: str
    file:
      description: The SIF on the controller that it is made from, or null.
      type: str
    digest:
      description: Digest of the recipe, SHA-256 of the file, or null.
      type: str
    sign:
      description: Whether it gets the site's signature.
      type: bool
keep:
  description: File names of the images that are locked.
  returned: success
  type: list
  elements: str
"""

from pathlib import Path

from ansible.module_utils import definition_file, image_declaration, image_lock
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.definition_file import Recipe
from ansible.module_utils.image_declaration import DeclarationError, Planned


def packed(recipe: Recipe, beside: Path, folder: Path) -> str:
    """Pack a definition with files from the folder *beside*. Raises DefinitionError and OSError."""
    archive = folder / f"{recipe.digest}.tar"
    if not archive.exists():
        part = folder / f".{recipe.digest}.part"
        with part.open("wb") as target:
            definition_file.pack(recipe, beside, target)
        part.rename(archive)
    return str(archive)


def described(planned: Planned, folder: Path) -> dict:
    """Return what the role needs to know of an image to be made."""
    image = planned.image
    return {
        "name": image.name,
        "version": image.version,
        "file_name": image.file_name,
        "source": planned.source,
        "reference": image.source.text if image.source else None,
        "recipe": packed(planned.recipe, planned.path.parent, folder) if planned.recipe else None,
        "file": str(planned.path) if image.file else None,
        "digest": planned.recipe.digest if planned.recipe else image.sha256 or None,
        "sign": image.sign,
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "images": {"type": "list", "elements": "dict", "required": True},
            "lock": {"type": "dict", "default": {"images": []}},
            "folder": {"type": "path", "required": True},
            "recipes": {"type": "path", "required": True},
            "bootstrap": {
                "type": "list",
                "elements": "str",
                "default": ["docker", "localimage", "oras", "scratch"],
            },
        },
        supports_check_mode=True,
    )
    params = module.params
    recipes = Path(params["recipes"])
    try:
        lock = image_lock.read(params["lock"])
        declared = image_declaration.read(params["images"])
        plan = image_declaration.plan(declared, lock, Path(params["folder"]), params["bootstrap"])
        recipes.mkdir(mode=0o700, parents=True, exist_ok=True)
        make = [described(one, recipes) for one in plan if one.locked is None and not one.image.withdrawn]
    except image_lock.LockError as error:
        module.fail_json(msg="\n".join(f"lock: {problem}" for problem in error.problems))
    except (DeclarationError, definition_file.DefinitionError) as error:
        module.fail_json(msg="\n".join(f"images: {problem}" for problem in error.problems))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    keep = [one.image.file_name for one in plan if one.locked is not None and not one.image.withdrawn]
    module.exit_json(changed=False, make=make, keep=keep)


if __name__ == "__main__":
    main()
