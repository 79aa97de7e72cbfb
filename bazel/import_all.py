"""Imports every module of a package, in a place that has only what its target declares."""

import importlib
import pkgutil
import sys

package = importlib.import_module(sys.argv[1])
names = [found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(f"{package.__name__} and its {len(names)} modules import")
