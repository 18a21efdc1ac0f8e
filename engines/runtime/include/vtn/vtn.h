/* libvtn: video classification from a bundle of vtn-export, in plain C.
 *
 * Errors. Functions return VTN_OK or an exit code of vtn-export's errors; vtn_last_error() then has one sentence:
 *   what was got, what was expected, what to do. Nothing prints, exits or throws.
 * Ownership. A handle belongs to the caller until its close function, which is safe to call once more (an error code,
 *   no crash). Strings that a function returns live as long as the handle (vtn_last_error: until the thread's next
 *   call). Pixels and results belong to the caller; pixels are free again when the call returns.
 * Threads. Any thread may use a handle, one at a time: a second one gets VTN_ERROR_USAGE. Give each thread a clone;
 *   clones share the engine and keep it alive in whatever order they are closed. A stream is a clone of its own.
 *   vtn_stream_offer, _poll and _counters of one stream may be called from two threads.
 */
#ifndef VTN_VTN_H
#define VTN_VTN_H

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

/* The numbers are the exit codes of the command line (vtn_export/errors.py). */
#define VTN_OK 0
#define VTN_ERROR_INTERNAL 1 /* a bug, or no memory */
#define VTN_ERROR_USAGE 2    /* an argument outside its range, a null pointer, a closed handle */
#define VTN_ERROR_SHAPE 7    /* a frame or array of another size, format or type */
#define VTN_ERROR_BUNDLE 8   /* missing, incomplete, another schema, a wrong hash */
#define VTN_ERROR_BACKEND 12 /* the executor cannot run here */
#define VTN_ERROR_ENGINE 13  /* no engine, or one of another GPU, version or graph */
#define VTN_ERROR_PLUGIN 14  /* the plugin library is missing or another */
#define VTN_ERROR_GPU 15     /* no NVIDIA GPU answers */

/* Pixel formats, colour matrices and ranges (the last two for NV12 only). */
#define VTN_RGB 0
#define VTN_BGR 1
#define VTN_RGBA 2
#define VTN_NV12 3
#define VTN_BT601 0
#define VTN_BT709 1
#define VTN_LIMITED_RANGE 0 /* luma 16..235 */
#define VTN_FULL_RANGE 1
#define VTN_HOST 0
#define VTN_DEVICE 1 /* pointers that CUDA kernels can read: device, managed or mapped; not with the CPU executor */

/* What happens to a frame when the queue of vtn_stream_offer is full. */
#define VTN_DROP_OLDEST 0
#define VTN_DROP_NEWEST 1
#define VTN_BLOCK 2

typedef struct vtn_classifier vtn_classifier;
typedef struct vtn_stream vtn_stream;

typedef struct vtn_options {
    size_t struct_size;           /* sizeof(vtn_options) */
    const char* backend;          /* "auto" (or null), "tensorrt", "openvino" */
    int32_t threads;              /* of the CPU executor; 0: all */
    const char* tensorrt_library; /* null: libnvinfer.so.10 or .11, as built */
    const char* plugin_library;   /* null: beside the bundle, then VTN_PLUGIN_LIB */
} vtn_options;

typedef struct vtn_frame {
    size_t struct_size; /* sizeof(vtn_frame) */
    int32_t format;
    int32_t width; /* pixels */
    int32_t height;
    const uint8_t* data;   /* first row; NV12: luma */
    int64_t stride;        /* bytes from row to row; 0: rows are contiguous */
    const uint8_t* chroma; /* NV12: interleaved U and V, (height + 1) / 2 rows; null: after the luma rows */
    int64_t chroma_stride; /* 0: as stride */
    int32_t matrix;
    int32_t range;
    int32_t memory;
    void* stream; /* VTN_DEVICE: the cudaStream_t that makes the pixels and the resize runs on; null: the default */
} vtn_frame;

typedef struct vtn_stream_options {
    size_t struct_size; /* sizeof(vtn_stream_options) */
    int32_t window;     /* frames; 0: the bundle's num_frames */
    int32_t stride;     /* frames from result to result, 1 to 65536 */
    int32_t queue;      /* frames that may wait in vtn_stream_offer; 0: one stride */
    int32_t policy;
    double deadline; /* seconds; a result that took longer counts as late; 0: none does */
} vtn_stream_options;

typedef struct vtn_result {
    size_t struct_size;  /* sizeof(vtn_result) */
    float* logits;       /* the caller's, num_logits of them */
    size_t num_logits;   /* at least vtn_classifier_num_classes */
    int32_t ready;       /* 1: logits were written */
    int32_t frames;      /* frames in the window */
    int64_t frame_index; /* of the newest frame */
    double latency;      /* seconds from the newest frame's arrival to the result */
} vtn_result;

typedef struct vtn_counters {
    size_t struct_size; /* sizeof(vtn_counters) */
    uint64_t frames;    /* through the backbone */
    uint64_t results;
    uint64_t dropped; /* by the queue's policy */
    uint64_t late;    /* results beyond the deadline */
} vtn_counters;

VTN_API const char* vtn_version(void);
VTN_API const char* vtn_last_error(void); /* of this thread; "" after a success */

VTN_API int vtn_classifier_open(const char* bundle, const vtn_options* options, vtn_classifier** out);
VTN_API int vtn_classifier_clone(vtn_classifier* classifier, vtn_classifier** out);
VTN_API int vtn_classifier_close(vtn_classifier* classifier);
/* 0 or null for a handle that is none. */
VTN_API int32_t vtn_classifier_num_classes(vtn_classifier* classifier);
VTN_API int32_t vtn_classifier_feature_dim(vtn_classifier* classifier);
VTN_API int32_t vtn_classifier_num_frames(vtn_classifier* classifier);
VTN_API const char* vtn_classifier_label(vtn_classifier* classifier, int32_t index);
VTN_API const char* vtn_classifier_backend(vtn_classifier* classifier);

/* One video of num_frames frames. frame_index: their indices in the source, rising (null: 0, 1, 2, …).
 * chunk: frames a backbone call. logits: count floats, count ≥ num_classes. */
VTN_API int vtn_classify_full(vtn_classifier* classifier, const vtn_frame* frames, size_t num_frames,
                              const int64_t* frame_index, float* logits, size_t count);
VTN_API int vtn_classify_chunked(vtn_classifier* classifier, const vtn_frame* frames, size_t num_frames,
                                 const int64_t* frame_index, int32_t chunk, float* logits, size_t count);
/* features: count floats, count ≥ num_frames · feature_dim. */
VTN_API int vtn_features(vtn_classifier* classifier, const vtn_frame* frames, size_t num_frames, int32_t chunk,
                         float* features, size_t count);
VTN_API int vtn_classify_features(vtn_classifier* classifier, const float* features, size_t num_frames,
                                  const int64_t* frame_index, float* logits, size_t count);

VTN_API int vtn_stream_open(vtn_classifier* classifier, const vtn_stream_options* options, vtn_stream** out);
VTN_API int vtn_stream_close(vtn_stream* stream);
VTN_API int vtn_stream_reset(vtn_stream* stream);
/* At once, in this thread. frame_index: -1: one after the newest. result->ready says whether there is one. A push that
 * fails takes no frame; once the pixels are made its index is spent, as a dropped frame's. */
VTN_API int vtn_stream_push(vtn_stream* stream, const vtn_frame* frame, int64_t frame_index, vtn_result* result);
/* Several cameras at once: one backbone call for the frames of count different streams, all opened from one classifier
 * or its clones, then what vtn_stream_push does for each. frame_index may be null: one after the newest, for each.
 * results: count of them. With fewer frames than cameras, give the streams that have one. An error of one camera's
 * temporal graph is returned after the others have their results. */
VTN_API int vtn_streams_push(vtn_stream* const* streams, const vtn_frame* frames, const int64_t* frame_index,
                             size_t count, vtn_result* results);
/* Into the queue, for the stream's own thread. accepted (may be null): 0 if this frame was dropped. */
VTN_API int vtn_stream_offer(vtn_stream* stream, const vtn_frame* frame, int64_t frame_index, int32_t* accepted);
/* The newest result that was not polled yet, waiting for it up to timeout seconds. An error of the stream's
 * thread comes out here. */
VTN_API int vtn_stream_poll(vtn_stream* stream, double timeout, vtn_result* result);
VTN_API int vtn_stream_counters(vtn_stream* stream, vtn_counters* counters);

#ifdef __cplusplus
}
#endif

#endif
