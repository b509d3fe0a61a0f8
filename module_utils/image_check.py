# SPDX-License-Identifier: Apache-2.0
"""Verdicts on images, wherever they are: files, folders and patterns, in parallel, with what is remembered.

This is the one way to a verdict: the module ``image_policy_check``, publication and ``fleet image check`` are
thin around `Checker`.
"""

from __future__ import annotations

import functools
import glob
import os
import stat
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Callable, Deque, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from . import image_facts, image_policy, squashfs
from .image_cache import SETTLED_NS, Cache, Remembered
from .image_facts import Needs, Verifier
from .image_lock import Lock
from .image_policy import Policy
from .image_rules import Contents, Image, Stat, Verdict, judge
from .squashfs import Tool

#: Raised when a rule changes its meaning: verdicts remembered from before are forgotten.
VERSION = 2
#: The names of images in a folder.
PATTERNS = ("*.sif",)


class Checked(NamedTuple):
    """A verdict, and the image as it was found; None if it was remembered."""

    verdict: Verdict
    image: Optional[Image]


class Checker:
    """Judges images by one policy. It belongs to one thread, and has helpers of its own."""

    def __init__(
        self,
        policy: Policy,
        lock: Optional[Lock] = None,
        *,
        verifier: Optional[Verifier] = None,
        cache: Optional[Cache] = None,
        jobs: int = 1,
        patterns: Sequence[str] = PATTERNS,
        needs: Optional[Needs] = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Judge by *policy*, with the images of *lock*, *jobs* of them at a time.

        *needs* is what is read of an image; what the policy asks for, if it is not given.
        """
        self.policy, self.lock, self.verifier, self.cache = policy, lock or Lock(), verifier, cache
        self.jobs, self.patterns, self.clock = jobs, tuple(patterns), clock
        self.needs = needs or image_facts.needs(policy)
        self._largest = functools.lru_cache(maxsize=4096)(policy.largest)

    def check(self, paths: Iterable[str]) -> Iterator[Verdict]:
        """Yield a verdict for each image in *paths*: files, folders (all below them) and patterns.

        A path that is not there has a verdict, too: it can't be read. The order is that of *paths*, and of
        names in a folder.
        """
        for verdicts, _ in self._batches(paths):
            yield from verdicts

    def checked(self, paths: Iterable[str]) -> Iterator[Checked]:
        """Yield what `check` does, and the images as they were found."""
        for verdicts, images in self._batches(paths):
            yield from (Checked(verdict, images.get(verdict.path)) for verdict in verdicts)

    def _batches(self, paths: Iterable[str]) -> Iterator[Tuple[List[Verdict], Dict[str, Image]]]:
        for path in paths:
            for one in self._expanded(path):
                if one != path and _is_led_away(one, path):
                    yield self._not_looked_at(
                        one, "a symbolic link leads away from it, which is not followed"
                    )
                elif _is_folder(one):
                    yield from self._tree(one)
                else:
                    verdict, image = self.examine(one)
                    yield [verdict], {one: image} if image else {}

    def examine(self, path: str) -> Checked:
        """Judge the one image at *path*."""
        image = self._image(path, self._known(path))
        self._remember(image, self.clock())
        return Checked(self.judge(image), image)

    def _expanded(self, path: str) -> List[str]:
        if glob.has_magic(path) and not os.path.lexists(path):
            return sorted(glob.glob(path)) or [path]  # noqa: PTH207 - of any folder
        return [path]

    # --- folders --------------------------------------------------------------------------------------------

    def _tree(self, root: str) -> Iterator[Tuple[List[Verdict], Dict[str, Image]]]:
        folders = [root]
        while folders:
            folder = folders.pop()
            try:
                below, verdicts, images = self._folder(folder)
            except OSError as error:
                yield self._not_looked_at(folder, f"the folder can't be read: {error.strerror}")
                continue
            folders.extend(reversed(below))
            yield verdicts, images

    def _not_looked_at(self, path: str, reason: str) -> Tuple[List[Verdict], Dict[str, Image]]:
        image = Image(path, os.path.realpath(path), failure=("readable", reason))
        return [self.judge(image)], {path: image}

    def _folder(self, folder: str) -> Tuple[List[str], List[Verdict], Dict[str, Image]]:
        """Return the folders in *folder*, and the verdicts on its images, both by name.

        The third are the images that were looked at, by path.
        """
        context = self._context(folder)
        remembered = self.cache.verdicts(folder, context) if self.cache else Remembered(folder)
        below: List[str] = []
        verdicts: Dict[str, Verdict] = {}
        changed: List[str] = []
        suffix = self.patterns[0][1:] if self.patterns == PATTERNS else None
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.endswith(suffix) if suffix else any(fnmatchcase(name, one) for one in self.patterns):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        # Taken away since the folder was read: it is no image of it any more.
                        continue
                    verdict = remembered.verdict(name, status)
                    if verdict is not None:
                        verdicts[name] = verdict
                        continue
                    if not stat.S_ISDIR(status.st_mode):
                        changed.append(name)
                        continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
        prefix = folder.rstrip("/") + "/"
        images: Dict[str, Image] = {}
        new = []
        began = self.clock()
        for image in self._images([prefix + name for name in sorted(changed)]):
            name = image.path[len(prefix) :]
            images[image.path] = image
            verdicts[name] = self.judge(image)
            if self._remember(image, began) and image.stat and not image.symlink:
                new.append((name, verdicts[name], image.stat))
        if self.cache and (new or len(verdicts) - len(changed) < len(remembered)):
            gone = set(changed).union(name for name in remembered if name not in verdicts)
            self.cache.remember_verdicts(folder, context, remembered.without(gone), new)
        return sorted(below), [verdicts[name] for name in sorted(verdicts)], images

    def _images(self, paths: Sequence[str]) -> Iterator[Image]:
        """Look at *paths* in parallel, in their order, a bounded number ahead."""
        if self.jobs == 1 or len(paths) == 1:
            yield from (self._image(path, self._known(path)) for path in paths)
            return
        with ThreadPoolExecutor(self.jobs) as pool:
            ahead: Deque[Future[Image]] = deque()
            try:
                for path in paths:
                    # The cache belongs to this thread.
                    ahead.append(pool.submit(self._image, path, self._known(path)))
                    if len(ahead) > 8 * self.jobs:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    # --- one image ------------------------------------------------------------------------------------------

    def _known(self, path: str) -> Tuple[Optional[Stat], Optional[Contents]]:
        """Return what is remembered of the file at *path*, and what it was then."""
        if self.cache is None:
            return None, None
        try:
            status = image_facts.identify(Path(path).stat())
        except (OSError, ValueError):
            return None, None
        return status, self.cache.contents(status)

    def _image(self, path: str, known: Tuple[Optional[Stat], Optional[Contents]]) -> Image:
        return image_facts.examine(
            path,
            self.needs,
            self._largest,
            verifier=self.verifier,
            tool=_tool,
            # What was opened has to be what was asked for.
            known=lambda status: known[1] if status == known[0] else None,
        )

    def judge(self, image: Image) -> Verdict:
        """Judge an image that was looked at."""
        return judge(image, self.policy, self.lock, self.clock())

    def _remember(self, image: Image, began: float) -> bool:
        """Remember what is in *image* if that can be told from its times; return whether it can."""
        if self.cache is None or image.stat is None:
            return False
        if max(image.stat.modified, image.stat.changed) + SETTLED_NS > began * 1e9:
            return False
        if not image.remembered:
            self.cache.remember(image.stat, image.contents)
        return True

    def _context(self, folder: str) -> str:
        """Return what changes when a verdict on an unchanged file could."""
        return image_policy.fingerprint(
            VERSION,
            self.policy.fingerprint,
            self.lock.as_dict(),
            self.verifier.keys if self.verifier else "",
            # Ages are in days, and so is the end of a waiver.
            int(self.clock() // 86400),
            image_facts.folders(os.path.realpath(folder)),
            # What a newer one lists was not known before.
            _tool_version() if self.needs.root else None,
        )


def _is_led_away(path: str, pattern: str) -> bool:
    """Whether *path*, which *pattern* matched, is in or below a link that its owner could let point anywhere.

    What the pattern names itself is whoever wrote it knows; a link to a file is judged as one.
    """
    fixed = pattern.split("/")
    named = next(number for number, one in enumerate(fixed) if glob.has_magic(one))
    parts = path.split("/")
    above = ["/".join(parts[:end]) for end in range(named + 1, len(parts) + 1)]
    return any(os.path.islink(one) and _is_folder(one) for one in above)  # noqa: PTH114


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except ValueError:
        return False


_tool = functools.lru_cache(maxsize=1)(squashfs.find_tool)


def _tool_version() -> Optional[Tuple[int, int]]:
    try:
        tool: Tool = _tool()
        return tool.version
    except squashfs.SquashfsError:
        return None
