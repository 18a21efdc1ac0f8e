#include <gtest/gtest.h>

#include <cmath>

#include "support.hpp"

namespace vtn::detail {
namespace {

// The definition in float64, written again from its words: half-pixel centres, clamped edges, no antialias.
std::vector<double> reference(const std::vector<double>& rgb, int w, int h, int short_side, int crop) {
    int wide = short_side, high = short_side;
    (w < h ? high : wide) = int(std::floor((w < h ? double(h) / w : double(w) / h) * short_side));
    const int top = (high - crop + 1) / 2, left = (wide - crop + 1) / 2;
    std::vector<double> out;
    const auto source = [](int i, int size, int resized) { return std::max((i + 0.5) * size / resized - 0.5, 0.0); };
    for (int i = 0; i < crop; ++i) {
        for (int j = 0; j < crop; ++j) {
            const double y = source(i + top, h, high), x = source(j + left, w, wide);
            const int y0 = std::min(int(y), h - 1), x0 = std::min(int(x), w - 1);
            const int y1 = std::min(y0 + 1, h - 1), x1 = std::min(x0 + 1, w - 1);
            for (int c = 0; c < 3; ++c) {
                const auto at = [&](int r, int q) { return rgb[(std::size_t(r) * w + q) * 3 + c]; };
                const double upper = at(y0, x0) + (x - x0) * (at(y0, x1) - at(y0, x0));
                const double lower = at(y1, x0) + (x - x0) * (at(y1, x1) - at(y1, x0));
                out.push_back(upper + (y - y0) * (lower - upper));
            }
        }
    }
    return out;
}

constexpr std::pair<int, int> kSizes[]{{13, 11}, {11, 13}, {8, 8}, {1, 1}, {1, 7}, {97, 41}, {640, 361}, {3, 200}};

TEST(Preprocess, EveryPackedFormatEqualsTheDefinition) {
    Preprocessing pre;
    pre.short_side = 40, pre.crop_size = 33;
    for (const auto& [w, h] : kSizes) {
        const Picture picture(w * 7 + h, w, h);
        const auto expected =
            reference(std::vector<double>(picture.pixels.begin(), picture.pixels.end()), w, h, 40, 33);
        for (int format : {VTN_RGB, VTN_BGR, VTN_RGBA}) {
            const int bytes = format == VTN_RGBA ? 4 : 3, stride = w * bytes + 5;
            std::vector<std::uint8_t> packed(std::size_t(stride) * h, 99);
            for (int i = 0; i < w * h; ++i) {
                for (int c = 0; c < 3; ++c) {
                    packed[std::size_t(i / w) * stride + i % w * bytes + (format == VTN_BGR ? 2 - c : c)] =
                        picture.pixels[std::size_t(i) * 3 + c];
                }
            }
            packed.resize(packed.size() - 5);  // nothing behind the last row: ASan sees a read of its gap
            vtn_frame frame = picture.frame();
            frame.data = packed.data(), frame.format = format, frame.stride = stride;
            const auto processor = make_cpu_preprocessor(pre, InputType::uint8);
            std::vector<std::uint8_t> out(33 * 33 * 3);
            processor->run(checked_view(&frame), out.data());
            for (std::size_t i = 0; i < out.size(); ++i) EXPECT_NEAR(out[i], expected[i], 0.5 + 1e-9) << w << "x" << h;
            const auto normalising = make_cpu_preprocessor(pre, InputType::float32);
            std::vector<float> floats(33 * 33 * 3);
            normalising->run(checked_view(&frame), floats.data());
            for (std::size_t i = 0; i < out.size(); ++i) {
                EXPECT_FLOAT_EQ(floats[i % 3 * 33 * 33 + i / 3], float((out[i] / 255.0 - 0.45) / 0.225));
            }
        }
    }
}

TEST(Preprocess, Nv12InEveryMatrixAndRange) {
    Preprocessing pre;
    pre.short_side = 40, pre.crop_size = 33;
    for (const auto& [w, h] : kSizes) {
        for (int matrix : {VTN_BT601, VTN_BT709}) {
            for (int range : {VTN_LIMITED_RANGE, VTN_FULL_RANGE}) {
                const int stride = w + 3, chroma_stride = (w + 1) / 2 * 2 + 7;
                const Picture noise(w + 31 * h, w + 40, 2 * h + 40);
                const std::vector<std::uint8_t> luma(noise.pixels.begin(), noise.pixels.begin() + stride * (h - 1) + w);
                const std::size_t chroma_size = std::size_t(chroma_stride) * ((h + 1) / 2 - 1) + (w + 1) / 2 * 2;
                const std::vector<std::uint8_t> chroma(noise.pixels.end() - chroma_size, noise.pixels.end());
                // ITU-R BT.601 and BT.709, from their luma coefficients
                const double kr = matrix == VTN_BT709 ? 0.2126 : 0.299, kb = matrix == VTN_BT709 ? 0.0722 : 0.114;
                std::vector<double> rgb;
                for (int i = 0; i < w * h; ++i) {
                    const int r = i / w, c = i % w;
                    const bool full = range == VTN_FULL_RANGE;
                    const double y = full ? luma[r * stride + c] : (luma[r * stride + c] - 16) * 255.0 / 219;
                    const auto part = [&](int k) {
                        const double value = chroma[r / 2 * chroma_stride + c / 2 * 2 + k] - 128;
                        return full ? value : value * 255.0 / 224;
                    };
                    const double red = y + 2 * (1 - kr) * part(1), blue = y + 2 * (1 - kb) * part(0);
                    const double green = (y - kr * red - kb * blue) / (1 - kr - kb);
                    for (double value : {red, green, blue}) rgb.push_back(std::clamp(std::round(value), 0.0, 255.0));
                }
                const auto expected = reference(rgb, w, h, 40, 33);
                vtn_frame frame = noise.frame();
                frame.format = VTN_NV12, frame.width = w, frame.height = h, frame.matrix = matrix, frame.range = range;
                frame.data = luma.data(), frame.stride = stride;
                frame.chroma = chroma.data(), frame.chroma_stride = chroma_stride;
                const auto processor = make_cpu_preprocessor(pre, InputType::uint8);
                std::vector<std::uint8_t> out(33 * 33 * 3);
                processor->run(checked_view(&frame), out.data());
                for (std::size_t i = 0; i < out.size(); ++i)
                    EXPECT_NEAR(out[i], std::rint(expected[i]), 1) << w << "x" << h;
            }
        }
    }
}

TEST(Preprocess, BadFramesAreOneSentence) {
    const Picture picture(1);
    const auto told = [&](auto change) {
        vtn_frame frame = picture.frame();
        change(frame);
        return failure([&] { checked_view(&frame); }).first;
    };
    EXPECT_EQ(told([](vtn_frame&) {}), VTN_OK);
    EXPECT_EQ(told([](vtn_frame& f) { f.struct_size = 8; }), VTN_ERROR_USAGE);
    EXPECT_EQ(told([](vtn_frame& f) { f.data = nullptr; }), VTN_ERROR_USAGE);
    EXPECT_EQ(told([](vtn_frame& f) { f.width = 0; }), VTN_ERROR_SHAPE);
    EXPECT_EQ(told([](vtn_frame& f) { f.height = -3; }), VTN_ERROR_SHAPE);
    EXPECT_EQ(told([](vtn_frame& f) { f.width = 1 << 20; }), VTN_ERROR_SHAPE);
    EXPECT_EQ(told([](vtn_frame& f) { f.format = 4; }), VTN_ERROR_SHAPE);
    EXPECT_EQ(told([](vtn_frame& f) { f.stride = 3 * 13 - 1; }), VTN_ERROR_SHAPE);
    EXPECT_EQ(told([](vtn_frame& f) { f.stride = -39; }), VTN_ERROR_SHAPE);
    EXPECT_EQ(told([](vtn_frame& f) { f.format = VTN_NV12, f.matrix = 2; }), VTN_ERROR_SHAPE);
    EXPECT_EQ(told([](vtn_frame& f) { f.memory = 2; }), VTN_ERROR_SHAPE);
    EXPECT_EQ(failure([] { checked_view(nullptr); }).first, VTN_ERROR_USAGE);
    // device memory is a backend's matter: the CPU's refuses it, and never looks at the pointer
    vtn_frame frame = picture.frame();
    frame.memory = VTN_DEVICE, frame.data = reinterpret_cast<const std::uint8_t*>(0x1000);
    std::vector<std::uint8_t> out(frame_bytes({}, InputType::uint8));
    const auto [code, text] =
        failure([&] { make_cpu_preprocessor({}, InputType::uint8)->run(checked_view(&frame), out.data()); });
    EXPECT_EQ(code, VTN_ERROR_BACKEND);
    EXPECT_EQ(text, "frame: got device memory, expected host memory; this backend resizes on the CPU");
}

}  // namespace
}  // namespace vtn::detail
