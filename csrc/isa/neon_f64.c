#if !defined(__ARM_NEON)
#error "compile this file for neon: see setup.py"
#endif
#define CRNN_DOUBLE 1
#define CRNN_VBYTES 16
#define CRNN_VREGS 32
#define CRNN_ISA_NAME "neon"
#define THIS_KERNELS crnn_kernels_neon_f64
#include "kernels.h"
