#if !defined(__AVX512F__)
#error "compile this file for avx512: see setup.py"
#endif
#define CRNN_DOUBLE 0
#define CRNN_VBYTES 64
#define CRNN_VREGS 32
#define CRNN_ISA_NAME "avx512"
#define THIS_KERNELS crnn_kernels_avx512_f32
#include "kernels.h"
