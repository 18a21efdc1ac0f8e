// Live video through libvtn from GStreamer, the newest frames first: a slow machine drops frames, it never lags.
//
//   g++ -std=c++17 camera_stream.cpp $(pkg-config --cflags --libs gstreamer-app-1.0 gstreamer-video-1.0) -lvtn
//   ./camera_stream BUNDLE "nvarguscamerasrc ! nvvidconv"        # a Jetson's CSI camera
//   ./camera_stream BUNDLE "v4l2src device=/dev/video0 ! videoconvert"
//   ./camera_stream BUNDLE "videotestsrc num-buffers=64" 8 16    # stride, window
#include <gst/app/gstappsink.h>
#include <gst/gst.h>
#include <gst/video/video.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vtn/stream.hpp>

namespace {

// One sample as a frame; the colour matrix and range are the stream's own.
void offer(vtn::Stream& stream, GstSample* sample) {
    GstVideoInfo info;
    GstVideoFrame mapped;
    if (!gst_video_info_from_caps(&info, gst_sample_get_caps(sample)) ||
        !gst_video_frame_map(&mapped, &info, gst_sample_get_buffer(sample), GST_MAP_READ)) {
        throw vtn::Error(6, "camera: a buffer cannot be read as video");
    }
    const int matrix = info.colorimetry.matrix == GST_VIDEO_COLOR_MATRIX_BT709 ? VTN_BT709 : VTN_BT601;
    const int range = info.colorimetry.range == GST_VIDEO_COLOR_RANGE_0_255 ? VTN_FULL_RANGE : VTN_LIMITED_RANGE;
    const auto plane = [&](int i) { return static_cast<const std::uint8_t*>(GST_VIDEO_FRAME_PLANE_DATA(&mapped, i)); };
    const vtn::Frame frame =
        vtn::nv12(plane(0), plane(1), GST_VIDEO_FRAME_WIDTH(&mapped), GST_VIDEO_FRAME_HEIGHT(&mapped), matrix, range,
                  GST_VIDEO_FRAME_PLANE_STRIDE(&mapped, 0), GST_VIDEO_FRAME_PLANE_STRIDE(&mapped, 1));
    try {
        stream.offer(frame);
    } catch (...) {
        gst_video_frame_unmap(&mapped);
        throw;
    }
    gst_video_frame_unmap(&mapped);
}

// What broke the pipeline, "" where nothing did. The sink does not hear of it by itself.
std::string error_of(GstElement* pipeline) {
    GstBus* bus = gst_element_get_bus(pipeline);
    GstMessage* message = gst_bus_pop_filtered(bus, GST_MESSAGE_ERROR);
    gst_object_unref(bus);
    if (message == nullptr) return "";
    GError* error = nullptr;
    gst_message_parse_error(message, &error, nullptr);
    const std::string told = error != nullptr ? error->message : "it broke";
    g_clear_error(&error);
    gst_message_unref(message);
    return told;
}

// The next frame; null at the source's end, or where it breaks or is silent for ten seconds, which `broken` says.
GstSample* next(GstElement* pipeline, GstAppSink* sink, std::string& broken) {
    for (int tenths = 0; tenths < 100; ++tenths) {
        if (GstSample* sample = gst_app_sink_try_pull_sample(sink, GST_SECOND / 10)) return sample;
        broken = error_of(pipeline);
        if (!broken.empty() || gst_app_sink_is_eos(sink)) return nullptr;
    }
    broken = "no frame for 10 s";
    return nullptr;
}

void print(const vtn::Classifier& classifier, const vtn::Result& result) {
    std::printf("frame %lld, %.0f ms:", static_cast<long long>(result.frame_index), 1e3 * result.latency);
    for (const vtn::Label& label : classifier.top(result.logits, 3)) {
        std::printf(" %s %.2f", label.name.c_str(), label.probability);
    }
    std::printf("\n");
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3 || argc > 5) {
        std::fprintf(stderr, "usage: camera_stream BUNDLE SOURCE [STRIDE [WINDOW]]\n");
        return 2;
    }
    gst_init(nullptr, nullptr);
    const std::string launch = std::string(argv[2]) + " ! video/x-raw,format=NV12 ! appsink name=sink max-buffers=8";
    GError* problem = nullptr;
    GstElement* pipeline = gst_parse_launch(launch.c_str(), &problem);
    if (pipeline == nullptr || problem != nullptr) {
        std::fprintf(stderr, "camera_stream: %s\n", problem != nullptr ? problem->message : "no pipeline");
        return 2;
    }
    int code = 0;
    GstElement* sink = gst_bin_get_by_name(GST_BIN(pipeline), "sink");
    try {
        const vtn::Classifier classifier(argv[1]);
        vtn::StreamOptions options;
        if (argc > 3) options.stride = std::atoi(argv[3]);
        if (argc > 4) options.window = std::atoi(argv[4]);
        vtn::Stream stream(classifier, options);
        // A camera's frames are taken as they come, and left out where even their resize takes too long. A file plays
        // at its own pace: it stands for a camera.
        const bool live = gst_element_set_state(pipeline, GST_STATE_PAUSED) == GST_STATE_CHANGE_NO_PREROLL;
        g_object_set(sink, "sync", gboolean(!live), "drop", gboolean(live), nullptr);
        gst_element_set_state(pipeline, GST_STATE_PLAYING);
        std::uint64_t offered = 0;
        std::string broken;
        while (GstSample* sample = next(pipeline, GST_APP_SINK(sink), broken)) {
            try {
                offer(stream, sample);
            } catch (...) {
                gst_sample_unref(sample);
                throw;
            }
            gst_sample_unref(sample);
            ++offered;
            if (const auto result = stream.poll()) print(classifier, *result);
        }
        // The source has ended; the frames that still wait have not been looked at yet
        vtn_counters counters = stream.counters();
        while (counters.frames + counters.dropped < offered) {
            if (const auto result = stream.poll(0.1)) print(classifier, *result);
            counters = stream.counters();
        }
        if (const auto result = stream.poll()) print(classifier, *result);
        std::printf("%llu frames, %llu results, %llu dropped\n", static_cast<unsigned long long>(counters.frames),
                    static_cast<unsigned long long>(counters.results),
                    static_cast<unsigned long long>(counters.dropped));
        if (!broken.empty()) throw vtn::Error(offered == 0 ? 6 : 16, "camera: " + broken);
        if (offered == 0) throw vtn::Error(6, "camera: no frames");
    } catch (const vtn::Error& error) {
        std::fprintf(stderr, "camera_stream: %s\n", error.what());
        code = error.code();
    }
    gst_element_set_state(pipeline, GST_STATE_NULL);
    gst_object_unref(sink);
    gst_object_unref(pipeline);
    return code;
}
