#if !defined(__AVX2__)
#error "compile this file for avx2: see setup.py"
#endif
#define CRNN_DOUBLE 1
#define CRNN_VBYTES 32
#define CRNN_VREGS 16
#define CRNN_ISA_NAME "avx2"
#define THIS_KERNELS crnn_kernels_avx2_f64
#include "kernels.h"
