// A whole video through libvtn, frames by pipe from ffmpeg.
//
//   g++ -std=c++17 classify_video.cpp -lvtn -o classify_video
//   ffmpeg -v error -i clip.mp4 -f rawvideo -pix_fmt nv12 - | ./classify_video BUNDLE 640 360 nv12
//
// The bundle's num_frames frames are spaced evenly over the video, as when the model was trained. All of
// the video is held in memory: for clips; what does not end goes through vtn::Stream (camera_stream.cpp).
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vtn/classifier.hpp>

int main(int argc, char** argv) {
    if (argc < 4 || argc > 6) {
        std::fprintf(stderr, "usage: classify_video BUNDLE WIDTH HEIGHT [rgb24|nv12 [bt601|bt709]] < FRAMES\n");
        return 2;
    }
    const int width = std::atoi(argv[2]), height = std::atoi(argv[3]);
    const std::string format = argc > 4 ? argv[4] : "rgb24";
    const bool nv12 = format == "nv12";
    if (!nv12 && format != "rgb24") {
        std::fprintf(stderr, "classify_video: got format %s, expected rgb24 or nv12\n", argv[4]);
        return 2;
    }
    if (width < 1 || height < 1 || (nv12 && (width % 2 != 0 || height % 2 != 0))) {
        std::fprintf(stderr, "classify_video: got %s x %s, expected positive sizes, even ones for nv12\n", argv[2],
                     argv[3]);
        return 2;
    }
    // Raw frames do not say their colour matrix. Players take BT.709 for high definition.
    const std::string matrix = argc > 5 ? argv[5] : height >= 720 ? "bt709" : "bt601";
    if (matrix != "bt601" && matrix != "bt709") {
        std::fprintf(stderr, "classify_video: got matrix %s, expected bt601 or bt709\n", argv[5]);
        return 2;
    }
    const int yuv = matrix == "bt709" ? VTN_BT709 : VTN_BT601;
    try {
        vtn::Classifier classifier(argv[1]);
        const std::size_t size = std::size_t(width) * height * 3 / (nv12 ? 2 : 1);
        std::vector<std::vector<std::uint8_t>> pictures;
        std::vector<std::uint8_t> picture(size);
        std::size_t got;
        while ((got = std::fread(picture.data(), 1, size, stdin)) == size) pictures.push_back(picture);
        if (got != 0) throw vtn::Error(6, "stdin: it ended inside a frame; is the size right?");
        if (pictures.empty()) throw vtn::Error(6, "stdin: got no frames; is the size right?");
        std::vector<vtn::Frame> frames;
        std::vector<std::int64_t> index;
        const std::size_t wanted = std::size_t(classifier.num_frames());
        const std::size_t count = std::min(pictures.size(), wanted);
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t at =
                count == pictures.size() ? i : i * (pictures.size() - 1) / (count - 1 + (count == 1));
            const std::uint8_t* data = pictures[at].data();
            frames.push_back(nv12 ? vtn::nv12(data, nullptr, width, height, yuv, VTN_LIMITED_RANGE)
                                  : vtn::rgb(data, width, height));
            index.push_back(std::int64_t(at));
        }
        for (const vtn::Label& label : classifier.top(classifier.chunked(frames, index))) {
            std::printf("%.6f %s\n", label.probability, label.name.c_str());
        }
    } catch (const vtn::Error& error) {
        std::fprintf(stderr, "classify_video: %s\n", error.what());
        return error.code();
    }
}
