#define CRNN_DOUBLE 1
#define CRNN_VBYTES 8
#define CRNN_VREGS 16
#define CRNN_ISA_NAME "scalar"
#define THIS_KERNELS crnn_kernels_scalar_f64
#include "kernels.h"
