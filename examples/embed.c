/* libvtn from plain C: open a bundle, classify synthetic frames in a stream, show what an error looks like.
 *
 *   cc embed.c -lvtn -o embed && ./embed BUNDLE
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vtn/vtn.h>

static int fail(int code) {
    fprintf(stderr, "embed: %s\n", vtn_last_error());
    return code;
}

int main(int argc, char** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: embed BUNDLE\n");
        return 2;
    }
    vtn_classifier* classifier = NULL;
    int code = vtn_classifier_open(argv[1], NULL, &classifier);
    if (code != VTN_OK) return fail(code);

    vtn_stream_options options;
    memset(&options, 0, sizeof(options));
    options.struct_size = sizeof(options);
    options.window = 16;
    options.stride = 8;
    vtn_stream* stream = NULL;
    code = vtn_stream_open(classifier, &options, &stream);
    if (code != VTN_OK) return fail(code);

    enum { WIDTH = 64, HEIGHT = 48, FRAMES = 32 };
    static unsigned char pixels[WIDTH * HEIGHT * 3];
    const int classes = vtn_classifier_num_classes(classifier);
    float* logits = malloc(sizeof(float) * (size_t)classes);
    if (logits == NULL) return 1;

    for (int i = 0; i < FRAMES; ++i) {
        for (size_t k = 0; k < sizeof(pixels); ++k) pixels[k] = (unsigned char)(k * 7 + (size_t)i * 31);
        vtn_frame frame;
        memset(&frame, 0, sizeof(frame));
        frame.struct_size = sizeof(frame);
        frame.format = VTN_RGB;
        frame.width = WIDTH;
        frame.height = HEIGHT;
        frame.data = pixels;
        vtn_result result;
        memset(&result, 0, sizeof(result));
        result.struct_size = sizeof(result);
        result.logits = logits;
        result.num_logits = (size_t)classes;
        code = vtn_stream_push(stream, &frame, -1, &result);
        if (code != VTN_OK) return fail(code);
        if (result.ready) {
            int best = 0;
            for (int k = 1; k < classes; ++k) best = logits[k] > logits[best] ? k : best;
            printf("frame %lld: %s (%d frames, %s)\n", (long long)result.frame_index,
                   vtn_classifier_label(classifier, best), result.frames, vtn_classifier_backend(classifier));
        }
    }

    vtn_stream_close(stream);
    vtn_classifier_close(classifier);
    /* A closed handle is an error code and a sentence. */
    if (vtn_classifier_close(classifier) != VTN_ERROR_USAGE) return 1;
    printf("closed twice: %s\n", vtn_last_error());
    free(logits);
    return 0;
}
