"""The layers of ``src/aioxarray``, enforced by reading its imports.

Imports flow downwards: entry points, verbs, ``_xarray``, ``_zarr``, settings, ``_runtime``,
errors. The private parts of xarray and zarr are fenced into ``_xarray`` and ``_zarr``, so that
a new release of either is a change in one place.
"""

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

PACKAGE = "aioxarray"
SOURCE = Path(__file__).parent.parent / "src" / PACKAGE


@dataclass(frozen=True)
class Layer:
    """A part of the package, and what its modules may import."""

    name: str
    # First components of the path below src/aioxarray; empty for the verbs: all other modules.
    members: frozenset[str]
    may_import: frozenset[str]
    # Distributions whose objects the layer knows nothing of.
    knows_nothing_of: frozenset[str]
    # Private modules of the neighbours that the layer may use all the same.
    fenced_in: frozenset[str]


def _layer(
    name: str,
    members: str = "",
    *,
    may_import: str,
    knows_nothing_of: str = "",
    fenced_in: str = "",
) -> Layer:
    return Layer(
        name,
        frozenset(members.split()),
        frozenset(may_import.split()) | {name},
        frozenset(knows_nothing_of.split()),
        frozenset(fenced_in.split()),
    )


# Modules and attributes of the neighbours that no public promise covers.
FENCED = "xarray.core xarray.backends xarray.coding xarray.namedarray zarr.core _async_array"

LAYERS = {
    layer.name: layer
    for layer in (
        _layer("errors", "errors", may_import="", knows_nothing_of="xarray zarr"),
        _layer("_runtime", "_runtime", may_import="errors", knows_nothing_of="xarray zarr"),
        _layer(
            "settings",
            "_settings config progress",
            may_import="errors _runtime",
            knows_nothing_of="xarray zarr",
        ),
        _layer("_zarr", "_zarr", may_import="errors _runtime settings", fenced_in=FENCED),
        _layer("_xarray", "_xarray", may_import="errors _runtime settings _zarr", fenced_in=FENCED),
        _layer("_tracing", "_tracing", may_import="_zarr _xarray", knows_nothing_of="xarray zarr"),
        _layer("verbs", may_import="errors _runtime settings _zarr _xarray _tracing"),
        _layer(
            "testing",
            "testing",
            may_import="errors _runtime settings",
            # Stores hand out buffers, and zarr has the type of a buffer nowhere else.
            fenced_in="zarr.core.buffer",
        ),
        _layer(
            "entry",
            "__main__ _demo cli demo",
            may_import="errors _runtime settings _zarr _xarray _tracing verbs testing",
        ),
    )
}


def layer_of(module: str) -> Layer:
    """Return the layer of a module, given by its dotted name without ``aioxarray.``."""
    first = module.partition(".")[0]
    return next((layer for layer in LAYERS.values() if first in layer.members), LAYERS["verbs"])


class Use(NamedTuple):
    line: int
    # A dotted name that is imported or reached through attributes, or a bare attribute.
    name: str


def _covers(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)) is not None:
        return f"{base}.{node.attr}"
    return None


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the module that ``from … import`` names; ``package`` holds the importing module."""
    if node.level == 0:
        return node.module or ""
    parents = package.split(".")
    anchor = parents[: len(parents) - node.level + 1]
    return ".".join([*anchor, node.module] if node.module else anchor)


def imports(tree: ast.Module, package: str) -> Iterator[Use]:
    """Find every import: within functions, for types only and by name as well."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Use(node.lineno, alias.name)
            case ast.ImportFrom(names=names):
                # Each name may be a module: `from xarray import core`.
                for alias in names:
                    yield Use(alias.lineno, f"{_absolute(node, package)}.{alias.name}")
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]) if (
                _dotted(func) or ""
            ).rpartition(".")[2] in {"import_module", "__import__"}:
                yield Use(node.lineno, name)


def attributes(tree: ast.Module) -> Iterator[Use]:
    """Find dotted names that begin at an imported module, and the name of every attribute."""
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                modules[alias.asname or top] = alias.name if alias.asname else top
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=attr):
                yield Use(node.lineno, attr)
                root, _, rest = (_dotted(node) or "").partition(".")
                if root in modules:
                    yield Use(node.lineno, f"{modules[root]}.{rest}")
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr" | "delattr"),
                args=[_, ast.Constant(value=str(attr)), *_],
            ):
                yield Use(node.lineno, attr)


def violations(source: str, path: PurePosixPath, modules: frozenset[str]) -> list[str]:
    """List what a module does against the layers, each with its line and what to do.

    ``path`` is relative to ``src/aioxarray``, and ``modules`` are the first components of all
    such paths: they tell the module ``config`` from a name that the package exports.
    """
    tree = ast.parse(source)
    own = path.with_suffix("").as_posix().removesuffix("__init__").strip("/").replace("/", ".")
    layer = layer_of(own)
    package = ".".join([PACKAGE, *path.parts[:-1]])
    found: dict[tuple[int, str], str] = {}

    for use in imports(tree, package):
        top = use.name.partition(".")[0]
        if top in layer.knows_nothing_of:
            found[use.line, top] = (
                f"{layer.name} imports {top}: it must not know of {top}; move what needs it to "
                f"_{top}, or pass in a function or a plain value"
            )
        elif top == PACKAGE:
            inside = use.name.removeprefix(PACKAGE).lstrip(".")
            # `from aioxarray import load` goes through __init__, which belongs to the verbs.
            target = layer_of(inside if inside.partition(".")[0] in modules else "")
            if target.name not in layer.may_import:
                allowed = ", ".join(sorted(layer.may_import))
                found[use.line, target.name] = (
                    f"{layer.name} imports {use.name} of {target.name}: imports flow downwards "
                    f"and {layer.name} may import only {allowed}; move the shared part down, or "
                    f"let the upper layer pass it in"
                )

    for use in (*imports(tree, package), *attributes(tree)):
        fence = next((fence for fence in FENCED.split() if _covers(fence, use.name)), None)
        if fence is None or any(_covers(gate, use.name) for gate in layer.fenced_in):
            continue
        found[use.line, fence] = (
            f"{layer.name} uses {use.name}, which is private to "
            f"{'xarray' if fence.startswith('xarray') else 'zarr'}: use a public name, or give "
            f"_xarray or _zarr a function for it and call that"
        )

    return [f"src/{PACKAGE}/{path}:{line}: {text}" for (line, _), text in sorted(found.items())]


def source_files() -> list[PurePosixPath]:
    return sorted(PurePosixPath(p.relative_to(SOURCE).as_posix()) for p in SOURCE.rglob("*.py"))


def read(path: PurePosixPath) -> str:
    return (SOURCE / path).read_text(encoding="utf-8")


def test_source_is_found() -> None:
    # Else the tests below would pass for want of anything to look at.
    assert {"_runtime", "_xarray", "_zarr"} <= {path.parts[0] for path in source_files()}


def test_layers() -> None:
    files = source_files()
    modules = frozenset(path.parts[0].removesuffix(".py") for path in files)
    broken = [line for path in files for line in violations(read(path), path, modules)]
    assert not broken, "\n" + "\n".join(broken)


# Parts of a layer, lowest first: a part may import itself, those before it, and the modules that
# lie beside the parts ("").
ORDERS = {
    "_runtime": ["threads", "system", ""],
    "_zarr": ["", "stores", "metadata", "codecs", "chunks"],
    "_xarray": [
        "",
        "arrays",
        "dask",
        "lazy",
        "dividing",
        "explaining",
        "hdf5",
        "opening",
        "saving",
        "streaming",
    ],
}
# A folder that holds more than this is looked through, not known.
MOST_MODULES = 12


def _part(module: str) -> tuple[str, str]:
    """Return the layer and the part of a dotted name without ``aioxarray.``."""
    layer, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    return layer, first if first in ORDERS.get(layer, ()) else ""


def climbing(source: str, path: PurePosixPath) -> list[str]:
    """List the imports of a module from parts of its layer that lie above its own."""
    own = path.with_suffix("").as_posix().replace("/", ".")
    layer, part = _part(own)
    order = ORDERS.get(layer)
    if order is None:
        return []
    found = []
    for use in imports(ast.parse(source), ".".join([PACKAGE, *path.parts[:-1]])):
        target, above = _part(use.name.removeprefix(f"{PACKAGE}."))
        is_layer = use.name.startswith(f"{PACKAGE}.{layer}.")
        if is_layer and target == layer and order.index(above) > order.index(part):
            found.append(
                f"src/{PACKAGE}/{path}:{use.line}: {layer}/{part} imports {use.name}, which lies "
                f"above it in the order {', '.join(filter(None, order))}"
            )
    return found


def test_parts_of_layers() -> None:
    broken = [line for path in source_files() for line in climbing(read(path), path)]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("path", "source", "climbs"),
    [
        ("_zarr/stores/request.py", "from aioxarray._zarr.chunks.plan import ReadPlan", True),
        ("_zarr/stores/request.py", "from aioxarray._zarr.chunks import plan", True),
        ("_zarr/selection.py", "from aioxarray._zarr.stores.limited import LimitedStore", True),
        (
            "_zarr/chunks/chunk_reads.py",
            "from aioxarray._zarr.stores.limited import LimitedStore",
            False,
        ),
        ("_zarr/chunks/chunk_reads.py", "from aioxarray._zarr.chunks.shards import Index", False),
        ("_zarr/chunks/chunk_reads.py", "from aioxarray._zarr.selection import Chunk", False),
        ("_xarray/lazy/find.py", "import aioxarray._xarray.opening.engine", True),
        ("loading.py", "from aioxarray._xarray.lazy.find import find", False),
    ],
)
def test_rules_of_parts(path: str, source: str, climbs: bool) -> None:
    assert bool(climbing(source, PurePosixPath(path))) == climbs


def test_private_names_are_imported_in_one_module_a_layer() -> None:
    private = [fence for fence in FENCED.split() if "." in fence]
    broken = [
        f"src/{PACKAGE}/{path}:{use.line}: import {use.name} from the layer's compat.py"
        for path in source_files()
        if path.parts[0] in ("_xarray", "_zarr") and path.name != "compat.py"
        for use in imports(ast.parse(read(path)), ".".join([PACKAGE, *path.parts[:-1]]))
        if any(_covers(fence, use.name) for fence in private)
    ]
    assert not broken, "\n" + "\n".join(broken)


# The coroutines of a store that make requests, and its plain ones.
REQUESTS = frozenset(
    {"get", "get_partial_values", "get_ranges", "exists", "is_empty", "getsize", "getsize_prefix"}
    | {"list", "list_prefix", "list_dir", "set", "set_if_not_exists", "delete", "delete_dir"}
)
# The calls of obstore's functions and methods.
OBSTORE = frozenset(
    {"get_async", "get_range", "get_range_async", "get_ranges_async", "head", "head_async"}
    | {"put_async", "delete_async"}
)
# Stores that ask the limited store below them, and inner chunks that are in memory.
ASK_FOR_OTHERS = {
    "_zarr/metadata/prefetched.py": "self._store self",
    "_zarr/metadata/write_behind.py": "self._store super() self",
    "_zarr/chunks/pipeline.py": "getter",
}


def requests_made(source: str, path: PurePosixPath) -> list[str]:
    """List what a module asks of a store other than through a limited one, as its name says.

    A name that ends in "limited" is a `LimitedStore`, or a place in one, which the type checker
    sees to.
    """
    if path.is_relative_to("_zarr/stores") or path.parts[0] in ("testing", "_demo"):
        return []
    allowed = ASK_FOR_OTHERS.get(path.as_posix(), "").split()
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.Await(value=ast.Call(func=ast.Attribute(value=asked, attr=name)))
                | ast.comprehension(iter=ast.Call(func=ast.Attribute(value=asked, attr=name)))
                | ast.AsyncFor(iter=ast.Call(func=ast.Attribute(value=asked, attr=name)))
                | ast.Call(
                    func=ast.Name(id="partial") | ast.Attribute(attr="partial"),
                    args=[ast.Attribute(value=asked, attr=name), *_],
                )
            ) if name in REQUESTS:
                pass
            case ast.Attribute(value=asked, attr=name) if name in OBSTORE:
                pass
            case _:
                continue
        receiver = ast.unparse(asked)
        if not (receiver.endswith("limited") or receiver in allowed):
            found.append(
                f"src/{PACKAGE}/{path}:{asked.lineno}: {receiver}.{name} makes a request: ask a "
                f"LimitedStore, named so, or use aioxarray._zarr.stores.request"
            )
    return found


def test_requests_are_made_in_one_place() -> None:
    broken = [line for path in source_files() for line in requests_made(read(path), path)]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("_zarr/chunks/chunk_reads.py", "async def f(): await store.get(key)", "store.get"),
        ("_zarr/chunks/chunk_reads.py", "async def f(): await self.limited.get(key)", None),
        ("_zarr/chunks/chunk_reads.py", "values.get(key)", None),
        ("_zarr/chunks/chunk_reads.py", "partial(store.get, key)", "store.get"),
        ("_xarray/saving/saver.py", "async def f():\n async for k in s.list(): pass", "s.list"),
        (
            "_xarray/saving/saver.py",
            "async def f(): [k async for k in s.list_dir('')]",
            "s.list_dir",
        ),
        ("_xarray/opening/virtual.py", "obstore.get_range_async(client, key)", "get_range_async"),
        ("_zarr/stores/request.py", "async def f(): await store.get(key)", None),
    ],
)
def test_rules_of_requests(path: str, source: str, message: str | None) -> None:
    broken = requests_made(source, PurePosixPath(path))
    assert len(broken) == (message is not None)
    assert message is None or message in broken[0]


def test_folders_are_small() -> None:
    counts = Counter(path.parent.as_posix() for path in source_files() if path.stem != "__init__")
    # The public verbs and what stands beside them.
    del counts["."]
    large = {name: count for name, count in counts.items() if count > MOST_MODULES}
    assert not large, f"split these folders, or fold modules: {large}"


# The rules themselves: (module, source, what the message must say), None where all is well.
@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("_runtime/loops.py", "import zarr", "_runtime imports zarr"),
        ("_runtime/loops.py", "import zarr.abc.store", "_runtime imports zarr"),
        ("_runtime/loops.py", "from xarray import Dataset", "_runtime imports xarray"),
        ("_runtime/loops.py", "def f():\n    import xarray as xr", ":2: _runtime imports xarray"),
        ("_runtime/loops.py", "from aioxarray._zarr import stores", "of _zarr"),
        ("_runtime/loops.py", "from .._zarr.stores import Limited", "of _zarr"),
        ("_runtime/loops.py", "from .. import _xarray", "of _xarray"),
        ("_runtime/loops.py", "from aioxarray import load", "of verbs"),
        ("_runtime/loops.py", "import aioxarray", "of verbs"),
        ("_runtime/loops.py", "from aioxarray import config", "of settings"),
        ("_runtime/loops.py", "from aioxarray.errors import ForkError", None),
        ("_runtime/loops.py", "from aioxarray._runtime.threads import x\nimport anyio", None),
        ("_runtime/__init__.py", "from . import threads", None),
        ("_runtime/__init__.py", "from ..loading import load", "of verbs"),
        ("errors.py", "from aioxarray._runtime import loops", "errors imports"),
        ("config.py", "from aioxarray._runtime import loops", None),
        ("config.py", "from aioxarray._zarr import stores", "settings imports"),
        ("_zarr/pipeline.py", "from aioxarray._xarray import find", "of _xarray"),
        ("_zarr/pipeline.py", "from aioxarray.loading import load", "of verbs"),
        ("_zarr/pipeline.py", "from aioxarray import _runtime, config", None),
        ("_zarr/pipeline.py", "from zarr.core.array import AsyncArray", None),
        ("_xarray/find.py", "from aioxarray import _runtime, _zarr", None),
        ("_xarray/find.py", "import aioxarray.opening", "of verbs"),
        ("_xarray/find.py", "from xarray.core import indexing\nx = a._async_array", None),
        ("_xarray/find.py", "from aioxarray.testing import Gated", "of testing"),
        ("loading.py", "from aioxarray.testing import Gated", "of testing"),
        ("loading.py", "from aioxarray.cli import main", "of entry"),
        ("loading.py", "from aioxarray._xarray import find\nimport xarray as xr", None),
        ("cli.py", "from aioxarray.testing import Gated\nfrom aioxarray import load", None),
        ("testing/stores.py", "from aioxarray import config, errors\nimport zarr.abc.store", None),
        ("testing/stores.py", "from aioxarray._runtime import loops", None),
        ("testing/stores.py", "from aioxarray._zarr import stores", "of _zarr"),
        ("testing/stores.py", "from zarr.core.buffer import Buffer", None),
        ("testing/stores.py", "from zarr.core.buffer.cpu import Buffer", None),
        ("testing/stores.py", "from zarr.core.sync import sync", "uses zarr.core.sync"),
        ("loading.py", "from xarray.core.types import T_Dataset", "private to xarray"),
        ("loading.py", "from xarray import core", "private to xarray"),
        ("loading.py", "import xarray as xr\nx = xr.backends.zarr", ":2: verbs uses"),
        ("loading.py", "import zarr\n\nx = zarr.core.array", ":3: verbs uses"),
        ("loading.py", "import importlib\nimportlib.import_module('zarr.core')", "private to zarr"),
        ("loading.py", "x = array._async_array", "uses _async_array"),
        ("loading.py", "x = getattr(array, '_async_array')", "uses _async_array"),
        ("loading.py", "x = self.core.array\nfrom zarr.corelib import y", None),
    ],
)
def test_rules(path: str, source: str, message: str | None) -> None:
    layers = {"_runtime", "_xarray", "_zarr", "testing"}
    modules = frozenset(layers | {"__init__", "cli", "config", "errors", "loading", "opening"})
    broken = violations(source, PurePosixPath(path), modules)
    if message is None:
        assert broken == []
    else:
        assert len(broken) == 1
        assert message in broken[0]
        assert broken[0].startswith(f"src/aioxarray/{path}:")


def test_public_modules_have_docstrings() -> None:
    public = [
        path
        for path in source_files()
        if not any(part.startswith("_") for part in path.parts[:-1])
        and (not path.name.startswith("_") or path.name == "__init__.py")
    ]
    bare = [f"src/{PACKAGE}/{p}:1" for p in public if not ast.get_docstring(ast.parse(read(p)))]
    assert not bare, "give these modules a docstring that says what they are for: " + str(bare)


def _modules_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after a statement."""
    code = (
        f"import json, sys; sys.path.insert(0, {str(SOURCE.parent)!r})\n"
        f"{statement}\n"
        f"print(json.dumps(sorted(sys.modules)))"
    )
    # -I: neither the caller's PYTHONPATH nor the working directory has a say.
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return {name.partition(".")[0] for name in names}


def test_import_is_light() -> None:
    optional = (
        {"aiohttp", "fsspec", "icechunk", "obstore", "s3fs"}  # stores
        | {"cfgrib", "h5netcdf", "h5py", "netCDF4", "scipy"}  # formats
        | {"dask", "distributed", "trio", "uvloop"}  # schedulers and loops
        | {"matplotlib", "tqdm"}  # things to look at
    )
    # What the required dependencies import by themselves is theirs to answer for.
    required = _modules_after("import anyio, donfig, numpy, xarray, zarr")
    heavy = (_modules_after(f"import {PACKAGE}") - required) & optional
    assert not heavy, f"import these where they are used, not with aioxarray: {sorted(heavy)}"


def test_works_without_the_extra_fast() -> None:
    code = """
import sys
sys.modules["zstandard"] = sys.modules["isal"] = None
import numpy, xarray, zarr, aioxarray
from zarr.storage import MemoryStore
for codec in (zarr.codecs.ZstdCodec(), zarr.codecs.GzipCodec()):
    store = MemoryStore()
    encoding = {"a": {"compressors": codec}}
    xarray.Dataset({"a": ("x", numpy.arange(9))}).to_zarr(store, encoding=encoding)
    assert aioxarray.load(aioxarray.open_zarr(store)).a.sum() == 36
"""
    _modules_after(code)
