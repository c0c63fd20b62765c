"""Revisions of the user's project in worktrees that are gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.ab.process import Side
from harness.errors import HarnessError


class Repository:
    """The git repository around a folder.

    Raises:
        HarnessError: there is none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = Path(self._git("rev-parse", "--show-toplevel"))
        self.within = folder.resolve().relative_to(self.root.resolve())
        """Where in it the folder is."""

    def commit(self, revision: str) -> str:
        """The commit that a revision names.

        Raises:
            HarnessError: it names none.
        """
        try:
            return self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        except HarnessError:
            why = "found no such revision, expected a commit, branch or tag" + self._cut_off()
            raise HarnessError(f"{revision or repr(revision)}: {why}") from None

    def between(self, good: str, bad: str) -> list[str]:
        """The commits after `good` up to `bad`, the oldest first, along first parents.

        Raises:
            HarnessError: one of them is no revision, or `bad` does not come from `good`.
        """
        one, two = self.commit(good), self.commit(bad)
        with suppress(HarnessError):
            self._git("merge-base", "--is-ancestor", one, two)
            found = self._git("rev-list", "--reverse", "--first-parent", f"{one}..{two}").split()
            if found:
                return found
        why = f"{bad}: found no commit after {good}, expected one that comes from it{self._cut_off()}"
        raise HarnessError(why)

    def title(self, commit: str) -> str:
        """Short name and subject."""
        return self._git("log", "-1", "--format=%h %s", commit)

    @contextmanager
    def checked_out(self, revision: str) -> Iterator[Side]:
        """A revision in a worktree of its own, with this environment's libraries.

        Raises:
            HarnessError: there is no such revision, or git cannot check it out.
        """
        commit = self.commit(revision)
        with tempfile.TemporaryDirectory(prefix="harness-ab-", ignore_cleanup_errors=True) as parent:
            folder = Path(parent) / "project"
            try:
                self._git("worktree", "add", "--detach", str(folder), commit)
                if not (folder / self.within).is_dir():
                    raise HarnessError(f"{revision}: found no folder {self.within} in it")
                yield Side(revision, folder, Path(sys.executable), self.within, instead_of=self.root)
            finally:
                with suppress(HarnessError):
                    self._git("worktree", "remove", "--force", "--force", str(folder))

    def as_it_is(self) -> Side:
        """The working tree, with what is not committed."""
        return Side("working tree", self.root, Path(sys.executable), self.within)

    def _cut_off(self) -> str:
        """What may be the reason that a revision is not there."""
        shallow = self._git("rev-parse", "--is-shallow-repository") == "true"
        return "; this clone is shallow: git fetch --unshallow, or in CI fetch-depth: 0" if shallow else ""

    def _git(self, *arguments: str) -> str:
        """Run git, without the hooks that are for a person's own checkouts; also when this is stopped, to its end: what
        is done halfway cannot be put away.
        """
        try:
            process = subprocess.Popen(
                ["git", "-c", f"core.hooksPath={os.devnull}", *arguments],
                cwd=self._folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="surrogateescape",
                start_new_session=True,
            )
        except FileNotFoundError:
            raise HarnessError("git: not found, and revisions need it") from None
        with process:
            try:
                out, error = process.communicate()
            except KeyboardInterrupt:
                process.communicate()
                raise
        if process.returncode:
            raise HarnessError(f"git {arguments[0]}: {error.strip() or 'failed'}")
        return out.strip()
