#define CRNN_DOUBLE 0
#define CRNN_VBYTES 4
#define CRNN_VREGS 16
#define CRNN_ISA_NAME "scalar"
#define THIS_KERNELS crnn_kernels_scalar_f32
#include "kernels.h"
