#include <gtest/gtest.h>

#include "support.hpp"

namespace vtn::detail {
namespace {

TEST(Sha256, NistVectors) {
    EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    EXPECT_EQ(sha256_hex(std::string(1000000, 'a')),
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesMakeTheSameHash) {
    for (std::size_t size : {55, 56, 63, 64, 65, 119, 120, 200}) {
        const std::string text(size, 'x');
        Sha256 hash;
        for (char letter : text) hash.update(&letter, 1);
        EXPECT_EQ(hash.hex(), sha256_hex(text)) << size;
    }
}

TEST(Bundle, OpensAndReads) {
    const Folder folder;
    write_bundle(folder);
    const Bundle bundle = Bundle::open(folder.path);
    EXPECT_EQ(bundle.manifest.feature_dim, kWidth);
    EXPECT_EQ(bundle.manifest.num_classes, kClasses);
    EXPECT_EQ(bundle.manifest.frame_positions, 10);
    EXPECT_EQ(bundle.labels(), (std::vector<std::string>{"one", "two", "three"}));
    EXPECT_EQ(bundle.content("backbone.onnx"), "backbone");
    const auto [code, told] = failure([&] { bundle.graph(Part::full); });
    EXPECT_EQ(code, VTN_ERROR_BUNDLE);
    EXPECT_EQ(told, "bundle " + folder.path + ": no full graph (it has backbone, temporal); export with --part all");
}

TEST(Bundle, SaysWhatIsWrongWithTheFolder) {
    const Folder folder;
    const auto told = [&](const std::string& path) {
        const auto [code, text] = failure([&] { Bundle::open(path); });
        EXPECT_EQ(code, VTN_ERROR_BUNDLE) << text;
        return text;
    };
    EXPECT_EQ(told(folder.path + "/none"), "bundle " + folder.path +
                                               "/none: no such folder; make one with `vtn-export "
                                               "onnx --out " +
                                               folder.path + "/none`");
    EXPECT_NE(told(folder.path).find("no manifest.json in it"), std::string::npos);
    folder.write("file", "x");
    EXPECT_NE(told(folder.path + "/file").find("got a file, expected the folder"), std::string::npos);
    folder.write("manifest.json", std::string((16 << 20) + 1, ' '));
    EXPECT_NE(told(folder.path).find("larger than 16 MiB"), std::string::npos);
    folder.write("manifest.json", "\xff\xfe");
    EXPECT_NE(told(folder.path).find("cannot be read"), std::string::npos);
}

TEST(Bundle, ChangedTruncatedOrMissingFilesAreNamed) {
    const Folder folder;
    write_bundle(folder);
    const Bundle bundle = Bundle::open(folder.path);
    for (const char* text : {"Backbone", "backbon", "", "backbone "}) {
        folder.write("backbone.onnx", text);
        const auto [code, told] = failure([&] { bundle.content("backbone.onnx"); });
        EXPECT_EQ(code, VTN_ERROR_BUNDLE);
        EXPECT_NE(told.find("is not the manifest's"), std::string::npos) << told;
    }
    std::filesystem::remove(folder.path + "/backbone.onnx");
    EXPECT_NE(failure([&] { bundle.content("backbone.onnx"); }).second.find("No such file"), std::string::npos);
    EXPECT_NE(failure([&] { bundle.content("secret"); }).second.find("no secret in its manifest"), std::string::npos);
}

struct Edit {
    const char *from, *to, *said;
};

class BadManifest : public testing::TestWithParam<Edit> {};

TEST_P(BadManifest, IsOneSentence) {
    const auto [from, to, said] = GetParam();
    std::string text = manifest_text(R"({"labels.txt": "0", "backbone.onnx": "0", "temporal.onnx": "0"})");
    ASSERT_EQ(failure([&] { read_manifest(text, "m"); }).second, "");
    const std::size_t place = text.find(from);
    ASSERT_NE(place, std::string::npos) << from;
    text.replace(place, std::string(from).size(), to);
    const auto [code, told] = failure([&] { read_manifest(text, "m"); });
    EXPECT_EQ(code, VTN_ERROR_BUNDLE);
    EXPECT_NE(told.find(said), std::string::npos) << told;
}

INSTANTIATE_TEST_SUITE_P(
    Edits, BadManifest,
    testing::Values(
        Edit{"\"schema_version\": 1", "\"schema_version\": 2", "got schema version 2, expected 1; update vtn-export"},
        Edit{"\"schema_version\": 1", "\"schema_version\": 0", "expected 1; export the bundle again"},
        Edit{"\"schema_version\": 1", "\"schema_version\": true", "not a manifest of a bundle (no schema_version)"},
        Edit{"\"schema_version\": 1, ", "", "not a manifest of a bundle (no schema_version)"},
        Edit{"{\"schema_version\"", "[{\"schema_version\"", "cannot be read"},
        Edit{"\"file\": \"backbone.onnx\"", "\"file\": \"../backbone.onnx\"", "file name '../backbone.onnx'"},
        Edit{"\"file\": \"backbone.onnx\"", "\"file\": \"other.onnx\"", "graphs without files"},
        Edit{"\"backbone\": {", "\"trunk\": {", "unknown part 'trunk'"},
        Edit{"\"precision\": \"fp32\"", "\"precision\": \"fp8\"", "precision 'fp8'"},
        Edit{"\"crop_size\": 8", "\"crop_size\": 11", "crop_size 11 is larger than short_side 10"},
        Edit{"\"crop_size\": 8", "\"crop_size\": 0", "preprocessing: values out of range"},
        Edit{"\"crop_size\": 8", "\"crop_size\": \"8\"", "preprocessing: malformed (crop_size: got string"},
        Edit{"\"short_side\": 10", "\"short_side\": 99999999999999999999", "preprocessing: malformed"},
        Edit{"\"short_side\": 10", "\"short_side\": 18446744073709551615", "preprocessing: malformed"},
        Edit{"\"std\": [0.225", "\"std\": [0", "preprocessing: values out of range"},
        Edit{"\"uint8\", \"shape\"", "\"int64\", \"shape\"", "dtype 'int64'"},
        Edit{"\"measured\": 1e-6", "\"measure\": 1e-6", "no measured"},
        Edit{"\"fixed_bytes\": 0", "\"fixed_bytes\": \"0\"", "fixed_bytes: got string"},
        Edit{"\"backbone_fingerprint\"", "\"fingerprint\"", "no backbone_fingerprint"},
        Edit{"\"op\": {\"version\": 1}, ", "", "no op"}, Edit{"\"tools\": {}", "\"tools\": 3", "tools: got number"},
        Edit{"[\"chunk\", 8, 8, 3]", "[\"chunk\", 3, 8, 8]", "shape of frames"},
        Edit{"[\"chunk\", 4]", "[\"chunk\", 5]", "features"}, Edit{"\"name\": \"stub\", ", "", "no name"},
        Edit{"\"max_position_embeddings\": 12", "\"max_position_embeddings\": 2", "max_position_embeddings: got 2"}));

TEST(Manifest, DeepNestingIsRefused) {
    for (const char* pair : {"[]", "{}"}) {
        const std::string open = *pair == '[' ? "[" : "{\"a\":";
        std::string text;
        for (int i = 0; i < 100000; ++i) text += open;
        const auto [code, told] = failure([&] { read_manifest(text, "m"); });
        EXPECT_EQ(code, VTN_ERROR_BUNDLE);
        EXPECT_EQ(told, "m: cannot be read (nested deeper than 64)");
    }
}

}  // namespace
}  // namespace vtn::detail
