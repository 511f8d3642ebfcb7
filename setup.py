"""Build the one extension module of crnn; everything declarative stands in pyproject.toml.

Environment switches (all off by default)::

    CRNN_SANITIZE=address,undefined    compile and link with these sanitizers
    CRNN_DEBUG=1                       -O1 -g3, Cython checks bounds
    CRNN_COVERAGE=1                    gcov instrumentation
    CRNN_WERROR=1                      warnings of the C core are errors (CI does this, users' builds never)
"""

import hashlib
import os
import platform
import re
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
ISA_DIRECTORY = CSRC / "isa"

# Contraction to FMA is wanted and the two -fno-* flags only drop errno and trap bookkeeping. -ffast-math and
# -march=native are never used: results must not depend on the machine that compiled the wheel.
COMMON_FLAGS = [
    "-std=c11",
    "-O3",
    "-g0",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
ISA_FLAGS = {
    "scalar": ["-fno-tree-vectorize", "-fno-tree-slp-vectorize"],
    "sse2": [],
    "avx2": ["-mavx2", "-mfma", "-mprfchw"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprfchw", "-mprefer-vector-width=512"],
    "neon": [],
}
ARCHITECTURE_ISAS = {
    "x86_64": ["scalar", "sse2", "avx2", "avx512"],
    "aarch64": ["scalar", "neon"],
}


def switch(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def wanted_architectures() -> list[str]:
    return re.findall(r"-arch\s+(\S+)", os.environ.get("ARCHFLAGS", ""))


def settle_architecture() -> None:
    """A universal2 interpreter builds for this machine alone, and the wheel's name says so: one file cannot carry AVX2
    flags and ARM code. `ARCHFLAGS` with a single architecture overrules.
    """
    if "universal2" in sysconfig.get_platform() and len(wanted_architectures()) != 1:
        machine = platform.machine()
        os.environ["ARCHFLAGS"] = f"-arch {machine}"
        os.environ["_PYTHON_HOST_PLATFORM"] = sysconfig.get_platform().replace("universal2", machine)


def target_architecture(plat_name: str) -> str:
    """Normalised machine name the wheel is built for, which need not be the machine that builds it."""
    arch_flags = wanted_architectures()
    machine = arch_flags[0] if len(arch_flags) == 1 else plat_name.rsplit("-", 1)[-1]
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())


class BuildKernels(build_ext):
    """Compile every C file with the flags of its instruction set, several at a time, and only when it changed."""

    def initialize_options(self):
        super().initialize_options()
        self.cython_c_in_temp = True
        self.cython_directives = {
            "language_level": 3,
            "boundscheck": switch("CRNN_DEBUG"),
            "wraparound": False,
            "embedsignature": True,
        }

    def build_extension(self, ext):
        isas = ARCHITECTURE_ISAS.get(target_architecture(self.plat_name), ["scalar"])
        sources = [Path(path) for path in ext.depends if path.endswith(".c")]
        jobs = [(path, self.flags(path, isas)) for path in sources if self.wanted(path, isas)]
        Path(self.build_temp).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            ext.extra_objects = list(pool.map(lambda job: self.compile_one(ext, *job), jobs))
        # What was built for another set of switches may be older than the module: this file tells it to relink. Cython
        # goes by dates alone, so its output must go too.
        record = Path(self.build_temp) / "switches.txt"
        listing = "\n".join([str(self.cython_directives), *ext.extra_objects])
        if not record.exists() or record.read_text(encoding="utf-8") != listing:
            (Path(self.build_temp) / "crnn" / "_kernels.c").unlink(missing_ok=True)
            record.write_text(listing, encoding="utf-8")
        ext.depends = [*ext.depends, *ext.extra_objects, str(record)]
        ext.extra_compile_args = ["-O2", "-g0", "-fvisibility=hidden", *self.instrumentation()]
        ext.extra_link_args = ["-lm", "-lpthread", *self.instrumentation()]
        super().build_extension(ext)

    @staticmethod
    def wanted(path: Path, isas: list[str]) -> bool:
        return path.parent != ISA_DIRECTORY or path.stem.split("_")[0] in isas

    @staticmethod
    def instrumentation() -> list[str]:
        flags = []
        if sanitizers := os.environ.get("CRNN_SANITIZE"):
            flags += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g"]
        if switch("CRNN_COVERAGE"):
            flags += ["--coverage"]
        if switch("CRNN_DEBUG"):
            flags += ["-O1", "-g3"]
        return flags

    def flags(self, path: Path, isas: list[str]) -> list[str]:
        flags = COMMON_FLAGS + [f"-DCRNN_HAVE_{isa.upper()}=1" for isa in isas]
        if path.parent == ISA_DIRECTORY:
            flags += ISA_FLAGS[path.stem.split("_")[0]]
        if switch("CRNN_WERROR"):
            flags += ["-Werror"]
        return flags + self.instrumentation()

    def compile_one(self, ext, path: Path, flags: list[str]) -> str:
        # Objects of different flags live in different folders: changing a switch can never link a stale object.
        digest = hashlib.sha256(" ".join([*self.compiler.compiler_so, *flags]).encode()).hexdigest()[:12]
        output_dir = Path(self.build_temp) / digest
        target = Path(self.compiler.object_filenames([str(path)], output_dir=str(output_dir))[0])
        inputs = [path, *(Path(name) for name in ext.depends if name.endswith(".h"))]
        if self.force or not target.exists() or target.stat().st_mtime <= max(p.stat().st_mtime for p in inputs):
            self.compiler.compile(
                [str(path)], output_dir=str(output_dir), include_dirs=ext.include_dirs, extra_postargs=flags
            )
        return str(target)


c_files = sorted(str(path) for path in CSRC.glob("**/*.[ch]"))
included = sorted(str(path) for path in Path("crnn/kernels").glob("*.pxi"))
settle_architecture()
setup(
    ext_modules=[
        Extension(
            "crnn._kernels",
            sources=["crnn/_kernels.pyx"],
            include_dirs=["csrc/include", "csrc/core", numpy.get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
            depends=[*c_files, *included],
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
