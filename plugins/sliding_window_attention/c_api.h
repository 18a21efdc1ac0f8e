/* Sliding-window attention without TensorRT: plain C, for other frameworks and for checks on a GPU.
 * docs/op.md has the meaning of the fields. Every function returns a cudaError_t as int (0: success),
 * prints nothing, allocates no device memory and may be called from any thread. */
#ifndef VTN_SLIDING_WINDOW_ATTENTION_H
#define VTN_SLIDING_WINDOW_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define VTN_API __attribute__((visibility("default")))
#else
#define VTN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define VTN_FLOAT16 0
#define VTN_BFLOAT16 1
#define VTN_FLOAT32 2

struct CUstream_st; /* cudaStream_t is a pointer to it */

typedef struct vtn_sliding_window_attention_params {
    size_t struct_size;     /* sizeof(vtn_sliding_window_attention_params) */
    const void* qkv;        /* device, [batch, sequence, 3 * num_heads * head_dim], 16-byte aligned */
    const int32_t* lengths; /* device, [batch] */
    void* output;           /* device, [batch, sequence, num_heads * head_dim], 16-byte aligned */
    int32_t data_type;      /* VTN_FLOAT16, VTN_BFLOAT16 or VTN_FLOAT32 */
    int32_t num_heads;
    int32_t head_dim; /* 32, 64, 80, 96 or 128 */
    int32_t one_sided_window;
    int32_t dilation;
    int32_t num_global_tokens;
    int32_t causal;
    float scale;
    int64_t batch;
    int64_t sequence;
} vtn_sliding_window_attention_params;

/* What would be launched. `params` are the bytes of the kernel's only argument. */
typedef struct vtn_sliding_window_attention_launch {
    size_t struct_size;
    const char* kernel; /* static; null where there is nothing to launch */
    uint32_t grid[3];
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t queries; /* of a block */
    uint32_t params_bytes;
    unsigned char params[160];
} vtn_sliding_window_attention_launch;

/* Enqueues the op on a stream of the current device. */
VTN_API int vtn_sliding_window_attention(const vtn_sliding_window_attention_params* params, struct CUstream_st* stream);

/* The launch for a device that need not be here: its compute capability (87 for SM 8.7) and the shared
 * memory that a block of it may use, in bytes. Needs no driver. */
VTN_API int vtn_sliding_window_attention_plan(const vtn_sliding_window_attention_params* params,
                                              int32_t compute_capability, int32_t shared_bytes,
                                              vtn_sliding_window_attention_launch* launch);

/* "1.0.0 op=1": version of the library and of the op's contract. */
VTN_API const char* vtn_plugins_version(void);

#ifdef __cplusplus
}
#endif

#endif
