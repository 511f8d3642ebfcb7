"""The one door between Python and C: argument types in, one C call, status out; without the GIL, but for the
briefest steps. No numerics here.

The interface is described in docs/internals.md; the C side in csrc/include/crnn.h. Callers inside crnn have checked
values (ids in range, finite numbers); this module checks what C would crash on: dtypes, layouts and sizes.
"""
cimport numpy as cnp
from cpython.dict cimport PyDict_SetItem
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

cnp.import_array()

include "kernels/declarations.pxi"
include "kernels/checks.pxi"
include "kernels/memory.pxi"
include "kernels/stack.pxi"
include "kernels/stepper.pxi"
include "kernels/rows.pxi"
include "kernels/output.pxi"
include "kernels/updates.pxi"
include "kernels/machine.pxi"
