/* Everything that is compiled once per instruction set and dtype. The including file defines CRNN_DOUBLE, CRNN_VBYTES,
 * CRNN_VREGS (vector registers), CRNN_ISA_NAME and THIS_KERNELS (name of the table). */
#include "../core/hands.h"
#include "../core/internal.h"

extern const crnn_kernels THIS_KERNELS;

#include "../simd/vec.h"
#include "../simd/math.h"
#include "../simd/chains.h"
#include "../simd/gemm.h"
#include "../simd/dot.h"
#include "../simd/columns.h"
#include "../simd/pack.h"
#include "../simd/turned.h"
#include "../simd/finite.h"
#include "../cells/shape.h"
#include "../cells/cell.h"
#include "../sequence/layout.h"
#include "../sequence/packing.h"
#include "../sequence/forward.h"
#include "../sequence/prepare.h"
#include "../sequence/backward.h"
#include "../sequence/window.h"
#include "../sequence/weights.h"
#include "../sequence/halves.h"
#include "../output/softmax.h"
#include "../optim/rules.h"
#include "../simd/probe.h"

const crnn_kernels THIS_KERNELS = {
    .name = CRNN_ISA_NAME,
    .in_halves = kernel_in_halves,
    .forward = kernel_forward,
    .stepper = kernel_stepper,
    .step = kernel_step,
    .states = kernel_states,
    .backward = kernel_backward,
    .softmax_loss = kernel_softmax_loss,
    .softmax_probabilities = kernel_softmax_probabilities,
    .update = kernel_update,
    .sum_squares = kernel_sum_squares,
    .all_finite = kernel_all_finite,
    .scale = kernel_scale,
    .add_rows = kernel_add_rows,
    .function = kernel_function,
    .fma_loop = kernel_fma_loop,
    .fma_flops = 2 * 12 * VW,
    .read_loop = kernel_read_loop,
};
