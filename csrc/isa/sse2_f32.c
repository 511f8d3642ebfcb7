#if !defined(__SSE2__)
#error "compile this file for sse2: see setup.py"
#endif
#define CRNN_DOUBLE 0
#define CRNN_VBYTES 16
#define CRNN_VREGS 16
#define CRNN_ISA_NAME "sse2"
#define THIS_KERNELS crnn_kernels_sse2_f32
#include "kernels.h"
