// What the loader says of a bundle, a plugin library or an engine, for comparison with the Python loader:
// a code and a sentence on a line each, `0` and nothing where all is well.
#include <cstdio>
#include <string>

#include "bundle.hpp"
#include "engine_record.hpp"
#include "error.hpp"

using namespace vtn::detail;

int main(int argc, char** argv) {
    const std::string what = argc > 2 ? argv[1] : "";
    try {
        const Bundle bundle = Bundle::open(argc > 2 ? argv[2] : "");
        if (what == "bundle") {
            for (const auto& [name, digest] : bundle.manifest.files) bundle.content(name);
        } else if (what == "graph" && argc == 4) {
            const std::string part = argv[3];
            bundle.graph(part == "full" ? Part::full : part == "backbone" ? Part::backbone : Part::temporal);
        } else if (what == "plugin" && argc == 4) {
            find_plugin(bundle, "", argv[3]);
        } else if (what == "engine" && argc == 8) {
            find_engine(bundle, Part::temporal, {argv[3], argv[4], argv[5]}, argv[6], argv[7]);
        } else {
            return 2;
        }
        std::printf("0\n\n");
    } catch (const Error& error) {
        std::printf("%d\n%s\n", error.code, error.what());
    }
    return 0;
}
