"""Mutation check: does the suite notice when a sign in a kernel is wrong?

    python tests/mutation.py --list                  what would be changed
    python tests/mutation.py                         all of it (about 5 s for each change)
    python tests/mutation.py --only lstm --limit 10

Not part of the normal test run. The tree is copied to a temporary folder and only the copy is changed: one arithmetic
operator, constant or condition of the C core at a time. The copy is rebuilt, for one instruction set and without
optimisation (the kernels are one source for all sets), and the tests that cover the file must fail. A mutant that
survives is either a hole in the suite or an equivalent formula; EQUIVALENT below names the latter, with the reason.
exp, tanh and sigmoid are held to a few ULP by the C tests and are left out here, but for their signs.

Needs the build requirements (setuptools, Cython, a C compiler) in the running Python. Exit status 1 if
a mutant survives, or if the unchanged tree does not build or fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

ORACLE = "test_gradients.py::test_gradients_agree_with_the_oracle"
# First the tests that should notice, then those that are asked when they did not.
CELLS = ((ORACLE,), ("test_gradients.py", "test_layers_numeric.py"))
KERNELS = ((ORACLE, "test_kernels.py"), ("test_layers_numeric.py", "test_invariants.py"))
APART = (("test_invariants.py::test_directions_apart_do_not_change_a_bit",),)
STEPS = (("test_streaming.py", "test_wide_steps.py"),)
HALVES = (("test_halves.py",),)
GRID = (("test_layers_numeric.py::test_layer_agrees_with_the_oracle",),)
CHUNKS = (("test_layers_numeric.py::test_inference_agrees_with_training_bit_by_bit",),)
LOOKED = (("test_layers_numeric.py::test_every_value_is_looked_at",),)
LATE = (("test_layers_numeric.py::test_inference_reads_the_rows_of_this_call",),)
SHARED = (("test_layers_numeric.py::test_work_shared_by_threads",),)
HANDS = (("test_layers_numeric.py::test_sequences_change_hands",),)
SOFTMAX = (("test_output_layer.py",),)
OPTIM = (("test_optim_kernels.py",), ("test_kernels.py",))
Tests = tuple[tuple[str, ...], ...]

# Files whose every arithmetic operator is changed in turn (on lines that match the pattern), and the tests that must
# notice.
EVERY_OPERATOR = {
    "csrc/cells/rnn.h": (r"RNN_CELL\((tanh|sigmoid|relu)", CELLS),
    "csrc/cells/lstm.h": (r"", CELLS),
    "csrc/cells/gru.h": (r"", CELLS),
    "csrc/optim/rules.h": (r"RULE_ROW\((?!name)|^ +[ps][12]?\[i\]|q\.(decay|bias[12]) = ", OPTIM),
}

# Elsewhere most arithmetic is on indices, where a flipped sign only crashes: these changes are chosen by hand.
BY_HAND: tuple[tuple[str, str, str, Tests], ...] = (
    ("csrc/simd/math.h", "-EXP_LOWEST), -1, &scale)", "-EXP_LOWEST), 1, &scale)", CELLS),
    ("csrc/simd/math.h", "(m / ((T)2 - m)) | ((VI)x & bit)", "(m / ((T)2 - m))", CELLS),
    ("csrc/sequence/layout.h", "w->i >= block_rows(s, t) || ", "", KERNELS),
    ("csrc/sequence/layout.h", "            w->i = w->i0;", "            w->i = w->i0 + 1;", KERNELS),
    ("csrc/sequence/layout.h", "own.gates += (size_t)rank * rows_of_room(s) * s->ldg", "own.gates += 0", CHUNKS),
    ("csrc/sequence/layout.h", "if (s->plan.forward == BY_UNITS) return own;", "", STEPS),
    ("csrc/sequence/layout.h", "return s->keep ? row : i;", "return row;", CHUNKS),
    (
        "csrc/sequence/layout.h",
        "if (crnn_hand_over(team, &from)) *i1 = from.i0;",
        "crnn_hand_over(team, &from);",
        HANDS,
    ),
    ("csrc/sequence/forward.h", "if (own.t <= t0) {", "if (t0 <= t0) {", HANDS),
    ("csrc/sequence/forward.h", "t + 1 < t1 ? t0 : t1, i0, own.i1}", "t1, i0, own.i1}", HANDS),
    ("csrc/sequence/backward.h", "(crnn_stretch){t, 0, i0, i1}", "(crnn_stretch){t - 1, 0, i0, i1}", HANDS),
    ("csrc/sequence/forward.h", "first + (rank & 1)", "first + 0 * (rank & 1)", APART),
    ("csrc/sequence/backward.h", "((run->reversed ? s->R : 0) + row)", "row", APART),
    ("csrc/sequence/backward.h", "begin + (size_t)(rank & 1)", "begin + 0 * (size_t)(rank & 1)", APART),
    ("csrc/sequence/forward.h", "x[k] *= mask[k]", "x[k] += mask[k]", KERNELS),
    ("csrc/sequence/forward.h", "hh[k] += run->bhh", "hh[k] -= run->bhh", CELLS),
    ("csrc/sequence/small.h", "next_c = cell_row(s, after, i0)", "next_c = cell_row(s, after, i0 + 1)", STEPS),
    ("csrc/sequence/layout.h", "s->stepping && !turn ? 0", "s->stepping && turn ? 0", STEPS),
    ("csrc/sequence/prepare.h", "h + (s->turn ? s->B * s->ldh : 0)", "h", STEPS),
    ("csrc/simd/dot.h", "0) + sums[j]", "0) - sums[j]", STEPS),
    ("csrc/sequence/layout.h", "return run->x_late && !s->keep ?", "return run->x_late ?", CELLS),
    (
        "csrc/sequence/forward.h",
        "if (s->plan.forward == BY_UNITS) crnn_barrier(team);\n        return;",
        "return;",
        LATE,
    ),
    ("csrc/simd/finite.h", "zero, sums[0]);", "zero, zero);", LOOKED),
    ("csrc/sequence/small.h", "run->bias + u0 * VW + at", "run->bias + u0 * VW", CELLS),
    ("csrc/sequence/small.h", ".x = x + done * ldx", ".x = x", CELLS),
    ("csrc/simd/turned.h", "halves_in_order(s[i / 2 * 2], s[i]);", "s[i];", STEPS),
    ("csrc/simd/turned.h", "four_quarters + i * (VW / 4)", "four_quarters", STEPS),
    ("csrc/sequence/small.h", "v + i * ldv + k, ldv, rows - i", "v + k, ldv, rows - i", STEPS),
    ("csrc/simd/dot.h", "if (two) dot_tile(mr, wide, level, acc, two, columns);", "(void)two;", STEPS),
    ("csrc/simd/columns.h", "if (two) two->v = second.v + i * two->ldv,", "if (two)", STEPS),
    ("csrc/simd/dot.h", "MULADD(wv[j], vv,", "MULADD(wv[0], vv,", STEPS),
    ("csrc/simd/columns.h", "if (both) dot_tile(1, WIDE, 1, sums, &two, columns);", "(void)two;", STEPS),
    ("csrc/sequence/backward.h", "backwards ? rows - 1 - i : i;", "i;", GRID),
    ("csrc/sequence/backward.h", "b += 2 * gate, from = c)", "b += 2 * gate)", GRID),
    ("csrc/sequence/backward.h", "of_gate[g + 1], b, b + gate, c, from", "of_gate[g], b, b + gate, c, from", GRID),
    ("csrc/sequence/recurrent.h", "if (next.u < u) u = next.u;", "", GRID),
    ("csrc/sequence/recurrent.h", "waiting += next.units;", "", GRID),
    ("csrc/simd/chains.h", "store(c + off[n0 + j], init ?", "store(c + off[j], init ?", GRID),
    ("csrc/simd/chains.h", "MULADD(w, load(d + j * VW)", "MULADD(v, load(d + j * VW)", GRID),
    ("csrc/sequence/backward.h", "d + row * s->ldg, rows, block", "d + lo * s->ldg, rows, block", GRID),
    ("csrc/simd/dot.h", "(size_t)k * VW : last)), v[k]", "(size_t)k * VW : last)), -v[k]", STEPS),
    ("csrc/simd/dot.h", "if (x->v) held_source(acc, x);", "(void)x;", STEPS),
    ("csrc/sequence/upstream.h", "mask ? dx[k] * mask[k] : dx[k]", "dx[k]", KERNELS),
    ("csrc/sequence/upstream.h", "return t >= loss_lo && (", "return (", KERNELS),
    ("csrc/sequence/upstream.h", "== t + 1 && t >= loss_lo ?", "== t + 1 ?", KERNELS),
    ("csrc/sequence/backward.h", "s->length[i] > loss_lo && ", "", KERNELS),
    ("csrc/sequence/backward.h", " && s->length[i] <= hi", "", KERNELS),
    ("csrc/sequence/backward.h", "dst[k] += src[k]", "dst[k] = src[k]", KERNELS),
    ("csrc/sequence/backward.h", ".accumulate = g > 0", ".accumulate = 0", CELLS),
    ("csrc/sequence/backward.h", "to[k] += from[k]", "to[k] = from[k]", CELLS),
    ("csrc/simd/gemm.h", "p->accumulate || k > 0", "p->accumulate", CELLS),
    (
        "csrc/simd/gemm.h",
        "copy_tile(p->room, copied_lda, A, p->lda, me - mb, kn)",
        "copy_tile(p->room, copied_lda, A, p->lda, me - mb, 1)",
        SHARED,
    ),
    ("csrc/simd/gemm.h", "b + 2 * VW, ldb", "b, ldb", CELLS),
    ("csrc/simd/gemm.h", "(i) % ROWS_AN_ADDRESS == 2 ? two_rows", "(i) % ROWS_AN_ADDRESS == 2 ? a_row", CELLS),
    ("csrc/simd/gemm.h", "a_at[i] += (steps) * sizeof(T)", "a_at[i] += (steps) / 4 * sizeof(T)", CELLS),
    ("csrc/simd/gemm.h", "copy ? copied_lda : p->lda", "copy ? copied_lda + 1 : p->lda", SHARED),
    ("csrc/sequence/weights.h", "candidate && g == 2", "candidate && g == 1", KERNELS),
    ("csrc/sequence/weights.h", "(accumulate ? out[q] : 0) + sum[q]", "sum[q]", KERNELS),
    ("csrc/sequence/weights.h", "end > args->k2 ? end - args->k2 : 0", "start", KERNELS),
    ("csrc/sequence/weights.h", "end > args->k2 ? end - args->k2 : 0", "0", KERNELS),
    ("csrc/sequence/weights.h", "&& s->length[i] == 0", "", KERNELS),
    ("csrc/sequence/window.h", "if (j > 0) add_rows_to", "if (j > 1) add_rows_to", KERNELS),
    ("csrc/sequence/window.h", "add_rows_to(back->dh0 + i * s->ldh, to, leaving, s->ldh);", "", KERNELS),
    ("csrc/sequence/window.h", "if (dc) add_rows_to(back->dc0", "if (0) add_rows_to(back->dc0", KERNELS),
    ("csrc/sequence/window.h", "mask ? dx[k] * mask[k] : dx[k]", "dx[k]", KERNELS),
    ("csrc/sequence/window.h", "if (dc_n && s->length[i] == t + 1)", "if (0)", KERNELS),
    ("csrc/sequence/window.h", " || before != run->before + run->rows", "", KERNELS),
    ("csrc/sequence/window.h", "leaving = j >= b->t0 &&", "leaving = ", KERNELS),
    ("csrc/sequence/window.h", "j + 1 == k", "j + 2 == k", KERNELS),
    ("csrc/sequence/halves.h", "sum->from + lo, 1, hi - lo", "sum->from + lo, 0, hi - lo", HALVES),
    ("csrc/sequence/halves.h", ", own->accumulate = 0;", ";", HALVES),
    ("csrc/sequence/halves.h", "own < count ? own : count", "own", HALVES),
    ("csrc/sequence/halves.h", "(int64_t)half->first + half->bad -", "half->bad -", HALVES),
    ("csrc/sequence/halves.h", "view.sequences += half->first;", "view.sequences += 0;", HALVES),
    ("csrc/sequence/halves.h", "job->contexts[rank & 1]", "job->contexts[0]", HALVES),
    ("csrc/sequence/halves.h", "give_states(f->half, 3, whole->c_n, f->stack);", "", HALVES),
    ("csrc/sequence/halves.h", "take_states(b->half, 0, whole->dh_n, stack);", "", HALVES),
    ("csrc/sequence/halves.h", "*from = first->layers + q;", "*from = first->layers;", HALVES),
    ("csrc/sequence/halves.h", "*from = work[0].call.layers + q;", "*from = work[0].call.layers;", HALVES),
    ("csrc/core/tails.c", "view->step, bytes, b - a);", "view->step, bytes, b - a - 1);", KERNELS),
    ("csrc/core/tails.c", "memset(row, 0, count * bytes)", "memset(row, 0, bytes)", KERNELS),
    (
        "csrc/output/softmax.h",
        "(double)row[target] - (double)top",
        "(double)row[target] + (double)top",
        SOFTMAX,
    ),
    ("csrc/output/softmax.h", "log(sum) - call->sums[", "log(sum) + call->sums[", SOFTMAX),
    ("csrc/output/softmax.h", "v_exp(load(row + v) - top)", "v_exp(load(row + v) + 0 * top)", SOFTMAX),
    ("csrc/output/softmax.h", "(double)*at_target - sum", "(double)*at_target + sum", SOFTMAX),
    ("csrc/output/softmax.h", "factor = args->scale / sum", "factor = 1.0 / sum", SOFTMAX),
    ("csrc/output/softmax.h", "dh[k] *= call->factors[r]", "dh[k] *= 1", SOFTMAX),
    ("csrc/simd/gemm.h", "top = MAXIMUM(acc[i][j], top)", "top = MINIMUM(acc[i][j], top)", SOFTMAX),
    (
        "csrc/output/softmax.h",
        "w + v, args->ld, ldb, args->hidden)",
        "w + v, args->ld, ldb, args->hidden - 1)",
        SOFTMAX,
    ),
    ("csrc/output/softmax.h", "product_rows(&p, 0, H)", "product_rows(&p, 1, H)", SOFTMAX),
    ("csrc/output/softmax.h", "if (update) bias[c] -= ", "if (update) bias[c] += ", SOFTMAX),
    ("csrc/output/softmax.h", "(call->add ? bias[c] : 0) + ", "", SOFTMAX),
    ("csrc/output/softmax.h", "-args->rate * factor", "args->rate * factor", SOFTMAX),
    ("csrc/output/softmax.h", "args->accumulate || first > 0", "first > 0", SOFTMAX),
    ("csrc/output/softmax.h", "args->accumulate || first > 0", "args->accumulate", SOFTMAX),
    (
        "csrc/output/softmax.h",
        "n, from + left < to, slab & 1)",
        "n, 0, slab & 1)",
        SOFTMAX,
    ),
)

# (file, code of the line before the change, after it) -> why it computes the same.
EQUIVALENT: dict[tuple[str, str, str], str] = {}


@dataclasses.dataclass(frozen=True)
class Mutant:
    path: str
    line: int  # from 1
    before: str
    after: str
    tests: Tests

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before.strip()}  ->  {self.after.strip()}"


def hidden(line: str) -> str:
    """The line with everything that is not arithmetic on values blanked out: addresses, comments, loop heads."""
    if re.match(r"\s*(for|while|#|/?\*|//|static|NOINLINE|INLINE|size_t|const T \*|T \*)", line):
        return " " * len(line)
    line = re.sub(r"/\*.*?\*/", lambda m: " " * len(m.group()), line)
    out = list(line)
    for call in re.finditer(r"\b(load|store|load_part|store_part)\(", line):
        depth, at = 1, call.end()
        while at < len(line) and depth:
            depth += {"(": 1, ")": -1}.get(line[at], 0)
            if depth == 1 and line[at] == "," and call.group(1).startswith("store"):
                break  # what is stored is arithmetic again
            at += 1
        out[call.end() : at] = " " * (at - call.end())
    for index in re.finditer(r"\[[^\]]*\]", line):
        out[index.start() : index.end()] = " " * len(index.group())
    return "".join(out)


CHANGES = (
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r" \+= ", " -= "),
    (r" -= ", " += "),
    (r"(?<=[\w)]) \*[ (]", lambda found: " + " + found.group()[2:].strip()),
    (r"(?<=[=(,]) ?-(?=[a-z])", " "),
    (r"\bz_state \?", "!z_state ?"),
    (r"\(T\)1\b", "(T)2"),
    (r" > ", " < "),
)


def mutants_of(path: str, lines: str, tests: Tests) -> Iterator[Mutant]:
    for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
        if not re.search(lines, line):
            continue
        visible = hidden(line)
        for pattern, replacement in CHANGES:
            for found in re.finditer(pattern, visible):
                new = replacement if isinstance(replacement, str) else replacement(found)
                yield Mutant(path, number, line, line[: found.start()] + new + line[found.end() :], tests)


def all_mutants() -> list[Mutant]:
    mutants = [mutant for path, how in EVERY_OPERATOR.items() for mutant in mutants_of(path, *how)]
    for path, before, after, tests in BY_HAND:
        text = (ROOT / path).read_text(encoding="utf-8")
        if text.count(before) != 1:
            raise SystemExit(f"{path}: {before!r} stands there {text.count(before)} times, wanted once: update BY_HAND")
        lines = text[: text.index(before)].count("\n")
        mutants.append(Mutant(path, lines + 1, before, after, tests))
    return [m for m in mutants if (m.path, m.before.strip(), m.after.strip()) not in EQUIVALENT]


def copy_of_the_tree(folder: Path, isa: str) -> Path:
    """A checkout to break, set up to build one instruction set only."""
    tree = folder / "tree"
    ignore = shutil.ignore_patterns(".git", "build", "*.so", "__pycache__", ".*_cache", "results")
    shutil.copytree(ROOT, tree, ignore=ignore)
    setup = tree / "setup.py"
    text = setup.read_text(encoding="utf-8")
    built = sorted({"scalar", isa})  # the dispatcher falls back to the scalar kernels, so they must be there
    isas = f'ARCHITECTURE_ISAS = dict.fromkeys(("x86_64", "aarch64"), {built})'
    for pattern, replacement in ((r"ARCHITECTURE_ISAS = \{.*?\n\}", isas), (r'"-O\d"', '"-O0"')):
        text, changed = re.subn(pattern, replacement, text, flags=re.DOTALL)
        if not changed:
            raise SystemExit(f"setup.py has nothing like {pattern} any more: update copy_of_the_tree")
    setup.write_text(text, encoding="utf-8")
    return tree


def build(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


def run_tests(tree: Path, tests: tuple[str, ...], isa: str) -> subprocess.CompletedProcess[str]:
    files = [f"tests/{name}" for name in tests]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *files]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["CRNN_ISA"] = isa
    environment["CRNN_BLAS"] = "crnn"  # a build without AVX2 would leave the large products to BLAS
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=1800)


class Check:
    """A tree to break, and what the unchanged tree said to which tests."""

    def __init__(self, tree: Path, isa: str) -> None:
        self.tree = tree
        self.isa = isa
        self.trusted: set[tuple[str, ...]] = set()

    def require_green(self, tests: tuple[str, ...]) -> None:
        """Tests can only notice a change if they pass without it: find out once, when they are first needed."""
        if tests in self.trusted:
            return
        made = build(self.tree)
        if made.returncode != 0:
            raise SystemExit(f"{made.stderr}\nthe unchanged tree does not build")
        clean = run_tests(self.tree, tests, self.isa)
        if clean.returncode != 0:
            raise SystemExit(f"{clean.stdout}\nthe unchanged tree fails {', '.join(tests)}")
        self.trusted.add(tests)

    def verdict(self, mutant: Mutant) -> str:
        """killed, killed (does not build) or SURVIVED; the tree is as before afterwards."""
        target = self.tree / mutant.path
        original = target.read_text(encoding="utf-8")
        at = original.index(mutant.before, sum(len(line) + 1 for line in original.split("\n")[: mutant.line - 1]))
        changed = original[:at] + mutant.after + original[at + len(mutant.before) :]
        for tests in mutant.tests:
            self.require_green(tests)
            target.write_text(changed, encoding="utf-8")
            try:
                if build(self.tree).returncode != 0:
                    return "killed (does not build)"
                if run_tests(self.tree, tests, self.isa).returncode != 0:
                    return "killed"
            finally:
                target.write_text(original, encoding="utf-8")
        return "SURVIVED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose description contains TEXT")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N mutants, spread over the list")
    parser.add_argument("--isa", default="scalar", help="the instruction set to build and run (default: scalar)")
    options = parser.parse_args()
    mutants = [mutant for mutant in all_mutants() if options.only in str(mutant)]
    if options.limit and len(mutants) > options.limit:
        mutants = mutants[:: -(-len(mutants) // options.limit)]
    if options.list:
        print(*mutants, f"{len(mutants)} mutants", sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="crnn-mutation-") as folder:
        check = Check(copy_of_the_tree(Path(folder), options.isa), options.isa)
        survivors = []
        for number, mutant in enumerate(mutants, 1):
            outcome = check.verdict(mutant)
            print(f"[{number}/{len(mutants)}] {outcome}: {mutant}", flush=True)
            if outcome == "SURVIVED":
                survivors.append(mutant)
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants killed")
    for mutant in survivors:
        print(f"SURVIVED: {mutant}")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
