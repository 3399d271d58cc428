"""griffe extension: the docstrings that Python has at run time and the sources do not show.

A class that says `__doc__ = reference.RVQ.__doc__` has its parent's; so has a method without one.
"""

from typing import Any

import griffe


class InheritedDocstrings(griffe.Extension):
    """Fills them in once the whole package is read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called by griffe when every module is there."""
        self._visit(pkg)

    def _visit(self, module: griffe.Module) -> None:
        for member in module.members.values():
            if isinstance(member, griffe.Module):
                self._visit(member)
            elif isinstance(member, griffe.Class):
                self._fill(member)

    def _fill(self, cls: griffe.Class) -> None:
        parents = cls.mro()
        if cls.docstring is None and "__doc__" in cls.members:
            name = str(cls.members["__doc__"].value).split(".")[-2]  # of reference.RVQ.__doc__
            cls.docstring = next((p.docstring for p in parents if p.name == name), None)
        for name, member in cls.members.items():
            if isinstance(member, griffe.Function) and member.docstring is None:
                theirs = (p.members[name].docstring for p in parents if name in p.members)
                member.docstring = next((docstring for docstring in theirs if docstring), None)
